"""The cache check: scene caches that are whole, outdated or damaged, and NAVSIM's own."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from picked_findings import finding, run_one

from drivefine_agent.constants import MAP_VERSIONS
from drivefine_agent.doctor.findings import Finding, Status
from drivefine_agent.doctor.options import DoctorOptions
from drivefine_agent.evaluation.dataset import DatasetKeys, load_split_scenes
from drivefine_agent.scoring.cache_build import build_scene_cache, scene_refs

SPLIT = "synth_one_stage"


@pytest.fixture(scope="module")
def built(navsim_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene cache of the small data set; 8 scenes of several logs."""
    folder = tmp_path_factory.mktemp("cache") / "scenes"
    scenes = load_split_scenes(DatasetKeys(SPLIT, dataset_root=str(navsim_mini)))
    assert scenes.maps_root is not None
    build_scene_cache(scene_refs(scenes.windows[::3], scenes.maps_root), scenes.maps_root, folder)
    return folder


@pytest.fixture
def cache(built: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(built, tmp_path / "scenes"))


def options_for(cache: Path, dataset: Path) -> DoctorOptions:
    """That cache against that data set."""
    return DoctorOptions(environment={}, dataset_root=str(dataset), splits=(SPLIT,), caches=(cache,))


def test_a_cache_of_this_data_is_up_to_date(cache: Path, dataset: Path) -> None:
    result = run_one("caches", options_for(cache, dataset))
    assert "8 scenes of rules navsim_v1" in finding(result, str(cache)).seen
    origin = finding(result, SPLIT)
    assert origin.status is Status.WARNING  # the cache holds a third of the split
    assert origin.seen.startswith("8 scenes are as the logs and maps here")
    assert "16 scenes of the split are not in it" in origin.seen


def test_a_changed_log_makes_it_stale(cache: Path, dataset: Path) -> None:
    log = min((dataset / "navsim_logs" / "test").glob("*.pkl"))
    records = pickle.loads(log.read_bytes())  # our own test data
    for record in records:
        x, y, z = record["ego2global_translation"]
        record["ego2global_translation"] = [x + 0.5, y, z]
    log.write_bytes(pickle.dumps(records))
    found = finding(run_one("caches", options_for(cache, dataset)), SPLIT)
    assert found.status is Status.FAILURE
    assert found.seen.startswith("2 of 8 scenes were made from other data")
    assert "tools/build_scene_cache.py" in found.remedy


def test_a_changed_map_makes_it_stale(cache: Path, dataset: Path) -> None:
    for name, version in MAP_VERSIONS.items():
        with (dataset / "maps" / name / version / "map.gpkg").open("ab") as file:
            file.write(b"\0")
    found = finding(run_one("caches", options_for(cache, dataset)), SPLIT)
    assert found.seen.startswith("8 of 8 scenes were made from other data")


def scene_file(cache: Path) -> Path:
    """The file that holds the scenes."""
    return max(cache.iterdir(), key=lambda path: path.stat().st_size)


def test_a_truncated_cache_is_damaged(cache: Path, dataset: Path) -> None:
    path = scene_file(cache)
    os.truncate(path, path.stat().st_size - 10)
    found = finding(run_one("caches", options_for(cache, dataset)), str(cache))
    assert found.status is Status.FAILURE
    assert str(path) in found.seen + "".join(found.details)
    assert "tools/build_scene_cache.py" in found.remedy


@pytest.mark.parametrize("deep", [False, True])
def test_a_flipped_bit_is_found(cache: Path, deep: bool) -> None:
    path = scene_file(cache)
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # within the first scene, not in a table
    path.write_bytes(content)
    options = DoctorOptions(environment={}, caches=(cache,), deep=deep)
    found = finding(run_one("caches", options), str(cache))
    assert found.status is Status.FAILURE
    assert found.seen == "1 of its 8 scenes cannot be read"


def test_another_format_version_is_named(cache: Path, dataset: Path) -> None:
    manifest = cache / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 999}))
    found = finding(run_one("caches", options_for(cache, dataset)), str(cache))
    assert found.status is Status.FAILURE
    assert "999" in found.seen


def test_a_build_that_was_stopped(cache: Path, dataset: Path) -> None:
    (cache / "manifest.json").unlink()
    found = finding(run_one("caches", options_for(cache, dataset)), str(cache))
    assert found.status is Status.FAILURE
    assert "manifest.json" in found.seen


def test_caches_are_found_below_the_folder_of_experiments(cache: Path, goldens: Path) -> None:
    exp = cache.parent
    shutil.copytree(goldens / "official_metric_caches" / "v11", exp / "run" / "metric_cache")
    (exp / "training" / "some_log" / "some_token").mkdir(parents=True)
    (exp / "training" / "some_log" / "some_token" / "drivefine_inputs.gz").touch()
    result = run_one("caches", DoctorOptions(environment={"NAVSIM_EXP_ROOT": str(exp)}))
    assert finding(result, "run/metric_cache").seen == "1 scenes, 1 opened: 1 of NAVSIM 1.1"
    assert "1 samples with drivefine_inputs (1)" in finding(result, "training").seen
    assert finding(result, str(cache)).status is Status.OK


# ------------------------------------------------------------------------------------------ NAVSIM's


def metric(folder: Path) -> list[Finding]:
    """The findings of a metric cache."""
    return list(run_one("caches", DoctorOptions(environment={}, caches=(folder,))).findings)


def copy_of(goldens: Path, name: str, target: Path) -> Path:
    """An official metric cache that may be spoilt."""
    return Path(shutil.copytree(goldens / "official_metric_caches" / name, target))


def test_official_caches_by_version(goldens: Path) -> None:
    folder = goldens / "official_metric_caches" / "v22"
    whole, paths, maps = metric(folder)
    assert whole.seen == "1 scenes, 1 opened: 1 of NAVSIM 2.2"
    assert paths.status is Status.WARNING  # its list pretends to be from another machine
    assert f"by {folder.resolve()} in" in paths.remedy
    assert "map_root_override" in maps.remedy


def test_a_truncated_official_cache(goldens: Path, tmp_path: Path) -> None:
    folder = copy_of(goldens, "v11", tmp_path / "v11")
    (path,) = folder.rglob("metric_cache.pkl")
    os.truncate(path, 500)
    found = metric(folder)[0]
    assert found.status is Status.FAILURE
    assert any(str(path) in line for line in found.details)
    assert "run_metric_caching.py" in found.remedy


def test_two_versions_in_one_folder(goldens: Path, tmp_path: Path) -> None:
    folder = copy_of(goldens, "v11", tmp_path / "both")
    shutil.copytree(goldens / "official_metric_caches" / "v22", folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "metadata")
    mixed, no_list, _ = metric(folder)
    assert mixed.status is Status.FAILURE
    assert "1 of NAVSIM 1.1, 1 of NAVSIM 2.2" in mixed.seen
    assert no_list.status is Status.WARNING


def test_a_training_cache_with_a_stray_file_and_a_gap(tmp_path: Path) -> None:
    for token, names in (("a", ("inputs", "targets")), ("b", ("inputs",))):
        folder = tmp_path / "cache" / "log" / token
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.gz").touch()
    (tmp_path / "cache" / "notes.txt").touch()
    whole, strays, gap = metric(tmp_path / "cache")
    assert whole.seen == "2 samples with inputs (2), targets (1)"
    assert strays.status is Status.FAILURE
    assert "notes.txt" in strays.seen
    assert gap.seen == "1 samples lack targets"


def test_a_folder_that_is_no_cache(tmp_path: Path) -> None:
    (found,) = metric(tmp_path)
    assert found.status is Status.FAILURE
    (found,) = metric(tmp_path / "nowhere")
    assert found.seen == "no folder"
