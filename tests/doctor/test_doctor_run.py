"""The command as a whole: exit codes, JSON, a check that breaks; and the checks that need no files."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from picked_findings import finding, run_one

from drivefine_agent.doctor import hardware, run, versions
from drivefine_agent.doctor.findings import Finding, Status, ok, worst
from drivefine_agent.doctor.options import DoctorOptions

ROOT = Path(__file__).parents[2]
GB = 10**9


def doctor(environment: dict[str, str], *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command itself."""
    path = f"{ROOT}:{environment.get('PYTHONPATH', '')}".rstrip(":")
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "doctor.py"), *arguments],
        env={**environment, "PYTHONPATH": path},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_healthy_machine_is_healthy(
    clean_environment: dict[str, str], dataset: Path, tmp_path: Path
) -> None:
    done = doctor(clean_environment, "--json", "--dataset", str(dataset), cwd=tmp_path)
    report = json.loads(done.stdout)
    failures = [f for check in report["checks"] for f in check["findings"] if f["status"] == "failure"]
    if importlib.util.find_spec("navsim") is None:  # else it depends on that NAVSIM
        assert not failures
        assert done.returncode == 0
    assert [check["check"] for check in report["checks"]] == list(run.CHECKS)
    assert all(f["remedy"] for check in report["checks"] for f in check["findings"] if f["status"] != "ok")


def test_a_failure_is_exit_code_1_and_its_remedy_is_printed(
    clean_environment: dict[str, str], tmp_path: Path
) -> None:
    environment = {**clean_environment, "NUPLAN_MAPS_ROOT": "/no/maps"}
    done = doctor(environment, "--only", "variables", cwd=tmp_path)
    assert done.returncode == 1
    assert "FAIL  NUPLAN_MAPS_ROOT: /no/maps is no folder" in done.stdout
    assert "-> export NUPLAN_MAPS_ROOT=..." in done.stdout
    assert "not healthy" in done.stdout.splitlines()[-1]


def test_unknown_checks_are_refused(clean_environment: dict[str, str], tmp_path: Path) -> None:
    done = doctor(clean_environment, "--only", "blas,nonsense", cwd=tmp_path)
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    with pytest.raises(ValueError, match="nonsense"):
        run.run_checks(DoctorOptions(), ["nonsense"])


def test_a_check_that_breaks_is_a_failure_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_check.py").write_text("def check(options):\n    raise OSError('disk on fire')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(run.CHECKS, "versions", "broken_check")
    monkeypatch.setitem(run.CHECKS, "blas", "no_such_module")
    broken, absent, healthy = run.run_checks(DoctorOptions(), ["versions", "blas", "variables"])
    assert broken.status is Status.FAILURE
    assert "OSError: disk on fire" in broken.findings[0].seen
    assert "broken_check.py:2 in check" in broken.findings[0].details[0]
    assert "no_such_module" in absent.findings[0].seen
    assert len(healthy.findings) == 5


def test_the_worst_status_counts_and_trouble_needs_a_remedy() -> None:
    assert worst([Status.OK, Status.FAILURE, Status.WARNING]) is Status.FAILURE
    assert worst([]) is Status.OK
    assert ok("x", "y").remedy == ""
    with pytest.raises(ValueError, match="remedy"):
        Finding("x", Status.WARNING, "y")


# ------------------------------------------------------------------------------------------ versions


def test_libraries_out_of_range_and_absent() -> None:
    numpy, absent, rest = versions.library_findings(["numpy>=99", "no-such-library>=1", "torch>=2"])
    assert numpy.status is Status.FAILURE
    assert 'pip install "numpy>=99"' in numpy.remedy
    assert absent.status is Status.FAILURE
    assert absent.seen == "not installed"
    assert rest.seen.startswith("1 of 3 in range: torch")


@pytest.mark.parametrize(
    ("version", "status"),
    [("3.10.14", Status.FAILURE), ("3.11.7", Status.OK), ("3.13.1", Status.WARNING)],
)
def test_python_versions(version: str, status: Status) -> None:
    (found,) = versions.python_findings(">=3.11", version)
    assert found.status is status


# ------------------------------------------------------------------------------------------ variables


def test_variables_that_are_unset_wrong_and_right(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {
        "OPENSCENE_DATA_ROOT": str(dataset),
        "NUPLAN_MAPS_ROOT": str(tmp_path),  # a folder, but without maps
        "NAVSIM_DEVKIT_ROOT": str(tmp_path / "file"),
        "NUPLAN_MAP_VERSION": "nuplan-maps-v2",
    }
    result = run_one("variables", DoctorOptions(environment=environment))
    statuses = {found.topic: found.status for found in result.findings}
    assert statuses == {
        "OPENSCENE_DATA_ROOT": Status.OK,
        "NUPLAN_MAPS_ROOT": Status.FAILURE,
        "NAVSIM_EXP_ROOT": Status.WARNING,
        "NAVSIM_DEVKIT_ROOT": Status.FAILURE,
        "NUPLAN_MAP_VERSION": Status.WARNING,
    }
    maps = finding(result, "NUPLAN_MAPS_ROOT")
    assert "it holds no map" in maps.seen
    assert "before Python starts" in maps.remedy  # NAVSIM reads it while it is imported
    assert "a file, not a folder" in finding(result, "NAVSIM_DEVKIT_ROOT").seen


# ------------------------------------------------------------------------------------------ hardware


def test_the_paper_model_is_counted_without_being_built() -> None:
    need = hardware.model_need(DoctorOptions(model="llada_8b"))
    assert need.num_parameters == 8_482_350_624 + 872_448_000  # README: model, second expert
    assert need.inference("bfloat16") == 2 * need.num_parameters


def test_memory_and_gpus_against_a_model() -> None:
    need = hardware.Need("some model", 1_000_000_000)  # 2 GB in bfloat16, 4 in float32, 20 to train
    rams = [hardware.memory_finding(need, size * GB).status for size in (1, 3, 8, 32)]
    assert rams == [Status.FAILURE, Status.WARNING, Status.WARNING, Status.OK]
    gpus = hardware.gpu_findings(need, [("small", GB), ("middling", 8 * GB), ("large", 80 * GB)])
    assert [found.status for found in gpus] == [Status.FAILURE, Status.WARNING, Status.OK]
    assert "docs/cluster.md" in gpus[1].remedy
    assert hardware.gpu_findings(need, [])[0].status is Status.WARNING


def test_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    result = run_one("hardware", DoctorOptions(checkpoint=tmp_path))
    assert result.status is Status.FAILURE
    assert "config.json" in result.findings[0].seen
