"""Which NAVSIM is importable, told from folders that are put on the import path."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from picked_findings import finding, run_one

from drivefine_agent.doctor.findings import Status
from drivefine_agent.doctor.options import DoctorOptions

NEEDS_NO_NUPLAN = pytest.mark.skipif(
    importlib.util.find_spec("nuplan") is not None, reason="nuplan-devkit is installed here"
)
# What tells the releases apart, and nothing else of them.
AGENT = "class AbstractAgent:\n    def __init__(self, {}requires_scene=False): ...\n"
CACHE = "class MetricCache:\n    ego_state: int\n{}"
FILTER = "class SceneFilter:\n    has_route: bool = True\n{}"
SCORE = {
    "none": "def pdm_score(): ...\n",
    "legacy": "def pdm_score(scorer, row):\n    if scorer._config.human_penalty_filter:\n        "
    "row['x'] = 1\n",
    "fixed": "def pdm_score(scorer, row):\n    if scorer._config.human_penalty_filter:\n"
    "        row.at[0, 'multiplicative_metrics_prod'] = row.at[0, 'x']\n",
}


def write(path: Path, text: str = "") -> None:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def plant_navsim(root: Path, *, is_v2: bool, penalty_filter: str, scripts: tuple[str, ...]) -> None:
    """A folder that has of a NAVSIM what the doctor looks at."""
    package = root / "navsim"
    write(package / "__init__.py")
    write(package / "agents" / "abstract_agent.py", AGENT.format("trajectory_sampling, " if is_v2 else ""))
    cache = CACHE.format("    map_parameters: int\n" if is_v2 else "")
    write(package / "planning" / "metric_caching" / "metric_cache.py", cache)
    extra = "    include_synthetic_scenes: bool = False\n" if is_v2 else ""
    write(package / "common" / "dataclasses.py", FILTER.format(extra))
    write(package / "evaluate" / "pdm_score.py", SCORE[penalty_filter])
    for script in scripts:
        write(package / "planning" / "script" / script)


def options_with(root: Path, environment: dict[str, str]) -> DoctorOptions:
    """An interpreter that finds the folder first."""
    path = os.pathsep.join(filter(None, (str(root), environment.get("PYTHONPATH"))))
    return DoctorOptions(environment={**environment, "PYTHONPATH": path})


def test_an_unrelated_package_is_recognised(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    write(tmp_path / "navsim" / "__init__.py", "raise RuntimeError('this must not be imported')\n")
    info = tmp_path / "navsim-0.1.7.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: navsim\nVersion: 0.1.7\n")
    write(info / "top_level.txt", "navsim\n")
    found = finding(run_one("navsim", options_with(tmp_path, clean_environment)), "NAVSIM")
    assert found.status is Status.FAILURE
    assert "navsim 0.1.7" in found.seen
    assert str(tmp_path / "navsim") in found.seen
    assert "pip uninstall navsim" in found.remedy


@NEEDS_NO_NUPLAN
def test_a_regular_install_without_nuplan(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    plant_navsim(tmp_path, is_v2=True, penalty_filter="fixed", scripts=("run_pdm_score_one_stage.py",))
    result = run_one("navsim", options_with(tmp_path, clean_environment))
    assert "2.2 by its source" in finding(result, "NAVSIM").seen
    nuplan = finding(result, "nuplan-devkit")
    assert nuplan.status is Status.FAILURE
    assert "nuplan-devkit (motional, v1.2)" in nuplan.remedy
    scripts = finding(result, "NAVSIM's scripts")
    assert scripts.status is Status.FAILURE
    assert "0 YAML files" in scripts.seen
    assert "-e" in scripts.remedy


@pytest.mark.parametrize(
    ("is_v2", "penalty_filter", "scripts", "version", "status"),
    [
        (False, "none", ("run_pdm_score.py", "run_merge_submission_pickles.py"), "1.1", Status.OK),
        (False, "none", ("run_pdm_score.py",), "1.0 or older", Status.WARNING),
        (True, "fixed", ("run_pdm_score_one_stage.py",), "2.2", Status.OK),
        (True, "legacy", ("run_create_submission_pickle_warmup.py",), "2.2 of April 2025", Status.WARNING),
        (True, "legacy", ("run_pdm_score_one_stage.py",), "2.1", Status.WARNING),
    ],
)
def test_releases_are_told_apart(
    tmp_path: Path,
    clean_environment: dict[str, str],
    is_v2: bool,
    penalty_filter: str,
    scripts: tuple[str, ...],
    version: str,
    status: Status,
) -> None:
    plant_navsim(tmp_path, is_v2=is_v2, penalty_filter=penalty_filter, scripts=scripts)
    write(tmp_path / "navsim" / "planning" / "script" / "config" / "default_evaluation.yaml")
    result = run_one("navsim", options_with(tmp_path, clean_environment))
    assert f"{version} by its source" in finding(result, "NAVSIM").seen
    assert finding(result, "NAVSIM's scripts").status is Status.OK
    named = [found for found in result.findings if found.topic == "NAVSIM's version"]
    assert bool(named) == (status is Status.WARNING)
    assert ("human_penalty_filter=legacy" in "".join(found.remedy for found in named)) == (
        version == "2.2 of April 2025"
    )


def test_two_checkouts_that_are_mixed(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    plant_navsim(tmp_path / "one", is_v2=True, penalty_filter="fixed", scripts=())
    plant_navsim(tmp_path / "two", is_v2=True, penalty_filter="fixed", scripts=())
    environment = {**clean_environment, "NAVSIM_DEVKIT_ROOT": str(tmp_path / "two")}
    found = finding(run_one("navsim", options_with(tmp_path / "one", environment)), "NAVSIM_DEVKIT_ROOT")
    assert found.status is Status.WARNING
    assert str(tmp_path / "one") in found.remedy


def test_a_file_that_hides_hydra_plugins_is_named(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    write(tmp_path / "hydra_plugins" / "__init__.py")
    info = tmp_path / "careless-1.0.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: careless\nVersion: 1.0\n")
    write(info / "RECORD", "hydra_plugins/__init__.py,,\n")
    result = run_one("hydra", options_with(tmp_path, clean_environment))
    shadow = finding(result, "hydra_plugins")
    assert shadow.status is Status.WARNING
    assert str(tmp_path / "hydra_plugins" / "__init__.py") in shadow.seen
    assert "careless" in shadow.remedy
    agent = finding(result, "agent=drivefine")
    assert agent.status is Status.WARNING
    assert "--config-dir" in agent.remedy


def test_hydra_that_does_not_import(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    write(tmp_path / "hydra" / "__init__.py", "raise ImportError('mutable default')\n")
    found = finding(run_one("hydra", options_with(tmp_path, clean_environment)), "Hydra")
    assert found.status is Status.FAILURE
    assert "mutable default" in found.seen
    assert "hydra-core>=1.3.2" in found.remedy


def test_the_agent_resolves_where_the_plugin_is_installed(clean_environment: dict[str, str]) -> None:
    found = finding(run_one("hydra", DoctorOptions(environment=clean_environment)), "agent=drivefine")
    try:
        is_installed = importlib.util.find_spec("hydra_plugins.drivefine_searchpath") is not None
    except ModuleNotFoundError:
        is_installed = False
    if is_installed:
        assert found.status is Status.OK
        assert "drivefine_agent.agent.DriveFineAgent" in found.seen
    else:
        assert found.status is Status.WARNING
        assert "pip install -e ." in found.remedy


@pytest.mark.navsim
def test_a_real_navsim(clean_environment: dict[str, str]) -> None:
    python = os.environ.get("DRIVEFINE_NAVSIM_PYTHON", sys.executable)
    result = run_one("navsim", DoctorOptions(python=python, environment=clean_environment))
    if finding(result, "NAVSIM").seen.startswith("none in"):
        pytest.skip(f"{python} has no NAVSIM; set DRIVEFINE_NAVSIM_PYTHON")
    assert result.status is not Status.FAILURE
    assert finding(result, "importing NAVSIM").status is Status.OK
    assert finding(result, "NAVSIM's scripts").status is Status.OK
