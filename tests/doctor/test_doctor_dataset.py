"""The data set check: what is planted is found, and what is left can be used."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from picked_findings import finding, run_one

from drivefine_agent.constants import MAP_VERSIONS
from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.second_stage import load_second_stage
from drivefine_agent.data.sensors import image_path
from drivefine_agent.data.splits import load_split
from drivefine_agent.doctor.findings import Status
from drivefine_agent.doctor.options import DoctorOptions
from drivefine_agent.evaluation.dataset import DatasetKeys, load_split_scenes

SPLIT = "synth_one_stage"
NUM_SAMPLES = 24


@pytest.fixture
def options(dataset: Path, tmp_path: Path) -> DoctorOptions:
    """The spoilt copy, nothing from the environment."""
    return DoctorOptions(environment={}, dataset_root=str(dataset), output=tmp_path / "out")


def test_a_whole_data_set_is_usable(options: DoctorOptions, dataset: Path, tmp_path: Path) -> None:
    result = run_one("dataset", options)
    assert result.status is Status.OK
    assert finding(result, SPLIT).seen.startswith(f"all {NUM_SAMPLES} samples")
    reduced = load_split(tmp_path / "out" / "train_test_split" / f"{SPLIT}_usable.yaml")
    full = load_split(SPLIT, [dataset / "splits"])
    assert set(reduced.scene_filter.tokens or ()) == {
        window.token for window in load_scenes(dataset / "navsim_logs" / "test", full.scene_filter)
    }


def test_missing_images_are_named_and_left_out(options: DoctorOptions, dataset: Path, tmp_path: Path) -> None:
    images = sorted((dataset / "sensor_blobs").rglob("CAM_F0/*.jpg"))
    gone = [images[0], images[7]]
    for image in gone:
        image.unlink()
    found = finding(run_one("dataset", options), SPLIT)
    assert found.status is Status.FAILURE
    assert f"{NUM_SAMPLES - 2} of {NUM_SAMPLES} samples usable" in found.seen
    assert "2 files missing" in found.seen
    assert any(str(gone[0]) in line for line in found.details)
    listing = (tmp_path / "out" / f"{SPLIT}_missing.txt").read_text()
    assert sorted(listing.split()) == sorted(["missing", str(gone[0]), "missing", str(gone[1])])

    # The split that is written is one that evaluation and training accept, and has the other samples.
    path = tmp_path / "out" / "train_test_split" / f"{SPLIT}_usable.yaml"
    assert str(path) in found.remedy
    scenes = load_split_scenes(DatasetKeys(str(path), dataset_root=str(dataset)))
    everything = load_split_scenes(DatasetKeys(SPLIT, dataset_root=str(dataset)))
    usable = {window.token for window in scenes.windows}
    lacking = [w for w in everything.windows if w.token not in usable]
    assert {image_path(scenes.sensor_path, w.current.cameras["CAM_F0"].data_path) for w in lacking} == set(
        gone
    )


def test_images_are_opened_on_request_only(options: DoctorOptions, dataset: Path) -> None:
    image = min((dataset / "sensor_blobs").rglob("CAM_F0/*.jpg"))
    image.write_bytes(b"no picture")
    assert finding(run_one("dataset", options), SPLIT).status is Status.OK
    found = finding(run_one("dataset", replace(options, deep=True)), SPLIT)
    assert any("not a readable image" in line and str(image) in line for line in found.details)
    assert found.seen.startswith(f"{NUM_SAMPLES - 1} of {NUM_SAMPLES} samples usable; 1 files damaged")


@pytest.mark.parametrize("how", ["missing", "foreign"])
def test_a_map_that_is_no_map(options: DoctorOptions, dataset: Path, how: str) -> None:
    city = "us-ma-boston"
    path = dataset / "maps" / city / MAP_VERSIONS[city] / "map.gpkg"
    windows = load_scenes(
        dataset / "navsim_logs" / "test", load_split(SPLIT, [dataset / "splits"]).scene_filter
    )
    num_lost = sum(window.map_name == city for window in windows)
    assert num_lost > 0
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"<html>404</html>")
    result = run_one("dataset", options)
    maps = finding(result, "maps")
    assert maps.status is Status.FAILURE
    assert str(path) in maps.details[0]
    assert "NUPLAN_MAPS_ROOT" in maps.remedy
    split = finding(result, SPLIT)
    assert f"{NUM_SAMPLES - num_lost} of {NUM_SAMPLES} samples usable" in split.seen
    assert f"no map {city}: {num_lost} samples" in split.details


def test_damaged_and_missing_logs_stop_nothing(options: DoctorOptions, dataset: Path) -> None:
    logs = sorted((dataset / "navsim_logs" / "test").glob("*.pkl"))
    logs[0].write_bytes(logs[0].read_bytes()[:1000])
    logs[1].unlink()
    full = load_split(SPLIT, [dataset / "splits"])
    found = finding(run_one("dataset", options), SPLIT)
    assert found.status is Status.FAILURE
    assert any(str(logs[0]) in line for line in found.details)
    if full.scene_filter.log_names is not None:
        assert any(str(logs[1]) in line for line in found.details)
    rest = load_scenes(
        dataset / "navsim_logs" / "test",
        replace(full.scene_filter, tokens=None, log_names=tuple(log.stem for log in logs[2:])),
    )
    wanted = set(full.scene_filter.tokens or (window.token for window in rest))
    assert found.seen.startswith(f"{sum(w.token in wanted for w in rest)} of ")


def test_without_a_data_set_there_is_a_warning_with_the_way_to_one(tmp_path: Path) -> None:
    result = run_one("dataset", DoctorOptions(environment={}))
    assert result.status is Status.WARNING
    assert "tools/make_world.py" in result.findings[0].remedy
    result = run_one("dataset", DoctorOptions(environment={}, dataset_root=str(tmp_path / "nowhere")))
    assert result.status is Status.FAILURE


def test_a_second_stage_with_a_hole(navsim_mini: Path, tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    shutil.copytree(navsim_mini, root)
    split = load_split("synth_two_stage", [root / "splits"])
    paths = DatasetPaths.from_root(root)
    first = load_scenes(paths.logs(split.data_split), split.scene_filter)
    second = load_second_stage(paths.synthetic_scenes_path, split.scene_filter, first)
    folders = [(paths.sensors(split.data_split), first), (paths.synthetic_sensor_path, second)]
    for folder, windows in folders:  # most images are not among the test data; here their names suffice
        for window in windows:
            image = image_path(folder, window.current.cameras["CAM_F0"].data_path)
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
    options = DoctorOptions(
        environment={}, dataset_root=str(root), splits=("synth_two_stage",), output=tmp_path / "out"
    )
    assert run_one("dataset", replace(options, num_workers=2)).status is Status.OK

    assert split.reactive_all_mapping is not None
    groups = split.reactive_all_mapping
    lost = groups[0].pairs[0][0]
    window = next(window for window in second if window.token == lost)
    image_path(paths.synthetic_sensor_path, window.current.cameras["CAM_F0"].data_path).unlink()
    result = run_one("dataset", options)
    assert finding(result, "synth_two_stage").status is Status.OK
    assert f"{len(second) - 1} of {len(second)} samples usable" in finding(result, "stage two").seen
    mapping = finding(result, "mapping")
    assert mapping.status is Status.FAILURE
    assert mapping.seen.startswith(f"{len(groups) - 1} of {len(groups)} groups")

    reduced = load_split(tmp_path / "out" / "train_test_split" / "synth_two_stage_usable.yaml")
    assert reduced.reactive_all_mapping == groups[1:]
    keys = DatasetKeys(str(tmp_path / "out" / "train_test_split" / "synth_two_stage_usable.yaml"))
    scenes = load_split_scenes(replace(keys, dataset_root=str(root)))
    assert scenes.groups == groups[1:]
    assert lost not in {window.token for window in scenes.second_stage}
