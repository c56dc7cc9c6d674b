"""Does the interpreter that scores solve NAVSIM's least squares rightly? See `blas_probe`.

The commonest complaint in the field, "all my scores are zero", has this cause: the wheels of numpy 1.23 carry
OpenBLAS 0.3.20, whose kernels for Cooper Lake return a wrong singular value decomposition, and OpenBLAS picks
them on CPUs with AVX512-BF16 (Cooper Lake, Sapphire Rapids and later). NAVSIM pins numpy 1.23.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drivefine_agent.doctor.findings import Finding, failure, ok, warning
from drivefine_agent.doctor.options import DoctorOptions
from drivefine_agent.doctor.probes import run_probe

PROBE = "blas_probe.py"
TOLERANCE = 1e-6
"""Largest error that counts as right. Sound libraries stay below 1e-12, the faulty one is off by a factor."""
FAULTY_VERSIONS = ("0.3.20",)
SAFE_KERNEL = "Haswell"
"""Runs on every x86 CPU with AVX2, and is right in the faulty version too."""

_TOPIC = "least squares of NAVSIM"
_UPGRADE = "install numpy>=1.24 in that environment"
_EXPORT = f"export OPENBLAS_CORETYPE={SAFE_KERNEL}"


def check(options: DoctorOptions) -> list[Finding]:
    """The self-test in the interpreter `options.python`.

    Raises:
      ProbeError: the interpreter cannot run it, e.g. has no numpy.
    """
    report = run_probe(PROBE, options.python, options.environment)
    if is_right(report):
        return [right_result(report)]
    cure = run_probe(PROBE, options.python, {**options.environment, "OPENBLAS_CORETYPE": SAFE_KERNEL})
    return [wrong_result(report, is_cured=is_right(cure))]


def is_right(report: Mapping[str, Any]) -> bool:
    """Whether numpy's inverse and decomposition agree with the independent ones."""
    errors = (report["pinv_error"], report["svd_error"])
    return all(error is not None and error <= TOLERANCE for error in errors)


def right_result(report: Mapping[str, Any]) -> Finding:
    """Ok; a warning if the same numpy is wrong on other CPUs."""
    seen = (
        f"right (largest error {max(report['pinv_error'], report['svd_error']):.0e}), {_libraries(report)}; "
        f"{report['executable']}"
    )
    if not _is_faulty_version(report):
        return ok(_TOPIC, seen)
    if report["coretype"] and all(library["kernel"] == report["coretype"] for library in report["libraries"]):
        return ok(_TOPIC, f"{seen}, thanks to OPENBLAS_CORETYPE={report['coretype']}: keep it")
    return warning(
        _TOPIC,
        f"{seen}. This OpenBLAS is wrong where it picks its Cooper Lake kernels (CPUs with AVX512-BF16); "
        "here it did not",
        f"{_UPGRADE}, or {_EXPORT} on every machine that scores, and run this check there too",
    )


def wrong_result(report: Mapping[str, Any], is_cured: bool) -> Finding:
    """Failure, with what NAVSIM would make of it."""
    speed = report["believed_speed_mps"]
    believed = "no number at all" if speed is None else f"{speed:.1f} m/s"
    cured = f"{_EXPORT} before Python starts (tried here: " + (
        "the test then passes)" if is_cured else "the test still fails, so install another numpy)"
    )
    return failure(
        _TOPIC,
        f"WRONG, {_libraries(report)}; {report['executable']}. NAVSIM would take a car at 10 m/s for one at "
        f"{believed}, so that scores are near zero without any error",
        f"{_UPGRADE}, or {cured}. Scores and metric caches made on this machine before are void",
        f"errors: pseudo-inverse {_error(report['pinv_error'])}, decomposition {_error(report['svd_error'])} "
        f"(relative; right is below {TOLERANCE:g})",
    )


def _is_faulty_version(report: Mapping[str, Any]) -> bool:
    configs = [str(library["config"]).split() for library in report["libraries"]]
    return any(version in words for words in configs for version in FAULTY_VERSIONS)


def _libraries(report: Mapping[str, Any]) -> str:
    names = [
        f"{' '.join(str(library['config']).split()[:2])} with {library['kernel']} kernels"
        for library in report["libraries"]
    ]
    return f"numpy {report['numpy']}, {', '.join(names) or 'BLAS library unknown'}"


def _error(value: float | None) -> str:
    return "is no number" if value is None else f"{value:.1e}"
