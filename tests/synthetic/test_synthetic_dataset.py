"""The written dataset: readable through data/, the same bytes for the same seed, resumable, splits apart."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from drivefine_agent.constants import CAMERA_NAMES, MAP_VERSIONS, TRACK_TYPES
from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.data.logs import read_log
from drivefine_agent.data.maps import MAPS_INDEX_NAME, load_map
from drivefine_agent.data.scenes import future_poses, load_scenes
from drivefine_agent.data.sensors import read_image
from drivefine_agent.data.splits import load_split
from drivefine_agent.errors import DataError
from drivefine_agent.synthetic.dataset import WorldConfig, make_world, plan_logs

SMALL = WorldConfig(
    "",
    seed=4,
    num_train_logs=3,
    num_val_logs=1,
    num_test_logs=1,
    log_duration_s=9.0,
    train_frame_interval=4,
    easy_share=1.0,
    num_workers=1,
)


def _hashes(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    make_world(replace(SMALL, output=str(root)), show_progress=False)
    return root


def test_samples_load_with_images_and_maps(root):
    paths = DatasetPaths.from_root(root)
    for name in ("world_train", "world_val", "world_test"):
        split = load_split(name, [paths.splits])
        scenes = load_scenes(paths.logs(split.data_split), split.scene_filter)
        assert len(scenes) == len(split.scene_filter.tokens)
        for scene in scenes[:2]:
            image = read_image(paths.sensors(split.data_split), scene.current.cameras["CAM_F0"].data_path)
            assert image.shape == (1080, 1920, 3)
            assert future_poses(scene).shape == (8, 3)
            city = load_map(paths.maps_root, scene.map_name)
            for block in scene.current.roadblock_ids:
                assert block in city.roadblocks or block in city.roadblock_connectors


def test_frames_are_complete(root):
    for path in sorted((root / "navsim_logs").rglob("*.pkl")):
        frames = read_log(path)
        assert len(frames) == 19
        assert np.diff([f.timestamp_us for f in frames]) == pytest.approx(500_000)
        for frame in frames:
            assert set(frame.cameras) == set(CAMERA_NAMES)
            assert frame.driving_command.sum() == 1
            assert set(frame.annotations.names) <= set(TRACK_TYPES)
            assert np.hypot(*frame.annotations.boxes[:, :2].T).max(initial=0.0) < 70.0 + 1e-6


def test_red_lights_name_lane_connectors(root):
    city = load_map(root / "maps", "us-ma-boston")
    lights = {
        connector
        for path in sorted((root / "navsim_logs" / "trainval").glob("*.pkl"))
        for frame in read_log(path)
        if frame.map_name == "us-ma-boston"
        for connector, _ in frame.traffic_lights
    }
    assert all(str(connector) in city.lane_connectors for connector in lights)


def test_the_index_of_the_maps_is_written_where_a_kill_has_left_it_out(root):
    index = root / "maps" / MAPS_INDEX_NAME
    content = index.read_bytes()
    index.unlink()
    make_world(replace(SMALL, output=str(root)), show_progress=False)
    assert index.read_bytes() == content


def test_all_four_maps_exist(root):
    for name in MAP_VERSIONS:
        load_map(root / "maps", name)


def test_splits_share_no_log_and_no_token_and_test_has_its_own_city(root):
    splits = [load_split(f"world_{n}", [root / "splits"]) for n in ("train", "val", "test")]
    logs = [name for split in splits for name in split.scene_filter.log_names]
    tokens = [token for split in splits for token in split.scene_filter.tokens]
    assert len(set(logs)) == len(logs) == 5
    assert len(set(tokens)) == len(tokens)
    assert all(len(token) == 16 and int(token, 16) >= 0 for token in tokens)
    cities = {plan.split: set() for plan in plan_logs(SMALL)}
    for plan in plan_logs(replace(SMALL, num_train_logs=30, num_val_logs=5, num_test_logs=20)):
        cities[plan.split].add(plan.map_name)
    assert not cities["test"] & (cities["train"] | cities["val"])


def test_neighbourhoods_lie_far_apart():
    plans = plan_logs(replace(SMALL, num_train_logs=60))
    boston = np.array([plan.origin for plan in plans if plan.map_name == "us-ma-boston"])
    gaps = np.hypot(*(boston[:, None] - boston[None]).transpose(2, 0, 1)) + 1e9 * np.eye(len(boston))
    assert gaps.min() >= 1800.0


def test_same_seed_same_bytes_with_any_number_of_processes(root, tmp_path):
    make_world(replace(SMALL, output=str(tmp_path), num_workers=2), show_progress=False)
    assert _hashes(tmp_path) == _hashes(root)


def test_another_seed_gives_another_world(root, tmp_path):
    make_world(
        replace(SMALL, output=str(tmp_path), seed=5, num_train_logs=0, num_val_logs=0, images="none"),
        show_progress=False,
    )
    mine = read_log(next((tmp_path / "navsim_logs" / "test").glob("*.pkl")))
    theirs = read_log(next((root / "navsim_logs" / "test").glob("*.pkl")))
    assert mine[0].token != theirs[0].token
    assert not np.allclose(mine[-1].ego_pose - mine[0].ego_pose, theirs[-1].ego_pose - theirs[0].ego_pose)


def test_a_second_run_makes_only_what_is_missing(root):
    before = _hashes(root)
    log = sorted((root / "navsim_logs" / "trainval").glob("*.pkl"))[0]
    log.unlink()
    (root / ".world" / f"{log.stem}.json").unlink()
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.pkl")}
    summary = make_world(replace(SMALL, output=str(root)), show_progress=False)
    assert summary.num_made == 1
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert _hashes(root) == before


def test_a_folder_of_another_configuration_is_refused(root):
    with pytest.raises(DataError, match="different: \\['seed'\\]"):
        make_world(replace(SMALL, output=str(root), seed=99), show_progress=False)


BAD = [
    ({"cameras": ("CAM_X",)}, "cameras must be among"),
    ({"log_duration_s": 3.0}, "at least 6.5"),
    ({"images": "some"}, "samples, all or none"),
    ({"easy_share": 1.5}, "easy_share"),
    ({"num_test_logs": -1}, "must not be negative"),
    ({"train_frame_interval": 0}, "at least 1"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        replace(SMALL, **change)
