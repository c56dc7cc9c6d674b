"""The self-test of NAVSIM's least squares: right here, and wrong where an inverse is spoilt."""

from __future__ import annotations

import ast
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picked_findings import finding, run_one

from drivefine_agent.doctor import blas, blas_probe
from drivefine_agent.doctor.findings import Status
from drivefine_agent.doctor.options import DoctorOptions

PROBES = sorted(Path(blas_probe.__file__).parent.glob("*_probe.py"))
FAULTY = os.environ.get("DRIVEFINE_FAULTY_NUMPY_PYTHON")


def report_of(pinv: Any) -> dict[str, Any]:
    """What the probe would print if numpy's pseudo-inverse were this one."""
    facts = {
        "numpy": "1.23.5",
        "executable": "python3.9",
        "coretype": None,
        "libraries": [{"config": "OpenBLAS 0.3.20 DYNAMIC_ARCH Cooperlake", "kernel": "Cooperlake"}],
    }
    return {**blas_probe.self_test(pinv=pinv), **facts}


def test_the_velocity_matrix_is_the_normal_matrix_of_its_definition() -> None:
    # Displacement i along the heading is 0.1 s times speed i; speed i = v0 + 0.1 s * (a0 + ... + a(i-1)).
    heading, count, step_s = 0.3, 40, 0.1
    design = np.zeros((2 * count, count))
    for row in range(count):
        for column in range(row + 1):
            length = step_s if column == 0 else step_s**2
            design[2 * row, column] = length * math.cos(heading)
            design[2 * row + 1, column] = length * math.sin(heading)
    # NAVSIM's differences: 38 rows over 39 accelerations, -1 on the diagonal, and +1 in the last corner only.
    differences = np.zeros((38, 40))
    for row in range(38):
        differences[row, row + 1] = -1.0
    differences[37, 39] = 1.0
    expected = design.T @ design + 1e-4 * differences.T @ differences
    np.testing.assert_allclose(blas_probe.velocity_matrix(), expected, rtol=0, atol=1e-14)


def test_the_exact_inverse_is_one() -> None:
    matrix = np.array([[0.0, 2.0], [4.0, 1.0]])  # needs a pivot; inverse by hand
    np.testing.assert_allclose(
        blas_probe.exact_inverse(matrix).astype(float), [[-0.125, 0.25], [0.5, 0.0]], atol=1e-16
    )


def test_a_sound_numpy_is_right() -> None:
    result = blas_probe.self_test()
    assert result["pinv_error"] < 1e-9
    assert result["svd_error"] < 1e-12
    # Known motions: 10 m/s straight on, and a turn of 0.05 1/m (but for a penalty of 1e-10).
    assert result["believed_speed_mps"] == pytest.approx(10.0, abs=1e-9)
    assert result["believed_curvature"] == pytest.approx(0.05, abs=1e-9)


def test_the_check_runs_in_a_process_of_its_own(clean_environment: dict[str, str]) -> None:
    found = finding(run_one("blas", DoctorOptions(environment=clean_environment)), "least squares of NAVSIM")
    assert found.status is Status.OK
    assert f"numpy {np.__version__}" in found.seen


@pytest.mark.parametrize(
    ("spoil", "believed"),
    [
        (lambda inverse: inverse * 1.001, "10.0 m/s"),
        (lambda inverse: -30.0 * inverse, "-300.0 m/s"),
        (lambda inverse: np.full_like(inverse, np.nan), "no number at all"),
    ],
    ids=["off by a thousandth", "garbage", "no number"],
)
def test_a_wrong_inverse_is_found_and_the_remedy_named(spoil: Any, believed: str) -> None:
    report = report_of(lambda matrices: spoil(np.linalg.pinv(matrices)))
    assert not blas.is_right(report)
    found = blas.wrong_result(report, is_cured=True)
    assert found.status is Status.FAILURE
    assert believed in found.seen
    assert "numpy>=1.24" in found.remedy
    assert "export OPENBLAS_CORETYPE=Haswell" in found.remedy


def test_a_decomposition_that_does_not_converge_is_wrong() -> None:
    def give_up(matrices: np.ndarray) -> Any:
        raise np.linalg.LinAlgError("SVD did not converge")

    report = report_of(give_up)
    assert not blas.is_right(report)
    assert "no number at all" in blas.wrong_result(report, is_cured=False).seen


def test_a_wrong_decomposition_alone_is_found() -> None:
    def svd(matrix: np.ndarray) -> Any:
        left, values, right = np.linalg.svd(matrix)
        return left, values[::-1], right

    result = blas_probe.self_test(svd=svd)
    assert result["pinv_error"] < 1e-9
    assert result["svd_error"] > blas.TOLERANCE


def test_a_library_that_is_wrong_on_other_processors_is_a_warning() -> None:
    report = report_of(np.linalg.pinv)
    assert blas.is_right(report)
    found = blas.right_result(report)
    assert found.status is Status.WARNING
    assert "numpy>=1.24" in found.remedy
    pinned = {**report, "coretype": "Cooperlake"}  # the kernel in use was chosen by hand and passed
    assert blas.right_result(pinned).status is Status.OK


def test_an_interpreter_that_is_not_there_is_a_failure() -> None:
    result = run_one("blas", DoctorOptions(python="/no/such/python"))
    assert result.status is Status.FAILURE
    assert "/no/such/python" in result.findings[0].seen
    assert "--python" in result.findings[0].remedy


@pytest.mark.parametrize("path", PROBES, ids=lambda path: path.name)
def test_probes_run_on_python_39_and_alone(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    modules = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    ]
    assert not [name for name in modules if name.startswith("drivefine_agent")]


@pytest.mark.skipif(FAULTY is None, reason="set DRIVEFINE_FAULTY_NUMPY_PYTHON to a python with numpy 1.23.5")
def test_the_real_fault_is_found(clean_environment: dict[str, str]) -> None:
    if not blas_probe.has_avx512_bf16():
        pytest.skip("OpenBLAS's Cooper Lake kernels need a CPU with AVX512-BF16")
    environment = {**clean_environment, "OPENBLAS_CORETYPE": "Cooperlake"}
    options = DoctorOptions(python=str(FAULTY), environment=environment)
    found = finding(run_one("blas", options), "least squares of NAVSIM")
    assert found.status is Status.FAILURE
    assert "OpenBLAS 0.3.20 with Cooperlake" in found.seen
    assert "the test then passes" in found.remedy
