"""The two-stage split of a synthetic dataset: readable, consistent with its logs, reproducible, resumable."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from drivefine_agent.constants import AGENT_TYPES
from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.second_stage import load_second_stage
from drivefine_agent.data.sensors import read_image
from drivefine_agent.data.splits import load_split
from drivefine_agent.errors import DataError
from drivefine_agent.geometry.se2 import global_from_local
from drivefine_agent.synthetic.dataset import WorldConfig, make_world
from drivefine_agent.synthetic.second_stage import choose_starts

SMALL = WorldConfig(
    "",
    seed=5,
    num_train_logs=0,
    num_val_logs=0,
    num_test_logs=1,
    log_duration_s=20.0,
    num_two_stage_groups=2,
    followups_per_group=3,
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
    root = tmp_path_factory.mktemp("two_stages")
    summary = make_world(replace(SMALL, output=str(root)), show_progress=False)
    assert summary.num_second_stage == 12
    return root


@pytest.fixture(scope="module")
def split(root):
    return load_split("world_two_stage", [root / "splits"])


@pytest.fixture(scope="module")
def first_stage(root, split):
    scenes = load_scenes(DatasetPaths.from_root(root).logs("test"), split.scene_filter)
    return {scene.token: scene for scene in scenes}


@pytest.fixture(scope="module")
def second_stage(root, split, first_stage):
    folder = DatasetPaths.from_root(root).synthetic_scenes_path
    windows = load_second_stage(folder, split.scene_filter, first_stage.values())
    return {window.token: window for window in windows}


def test_mapping_filter_and_files_name_the_same_samples(root, split, first_stage, second_stage):
    groups = split.reactive_all_mapping
    files = {path.stem for path in DatasetPaths.from_root(root).synthetic_scenes_path.glob("*.pkl")}
    mapped = [token for group in groups for pair in group.pairs for token in pair]
    assert [len(group.pairs) for group in groups] == [3, 3]
    assert len(set(mapped)) == 12
    assert set(mapped) == files == set(second_stage)
    assert set(mapped) == set(split.scene_filter.reactive_synthetic_initial_tokens)
    assert {len(token) for token in mapped} == {17}
    assert {t for g in groups for t in (g.token, g.previous_token)} == set(first_stage)
    assert {len(token) for token in first_stage} == {16}


def test_a_second_stage_starts_when_its_first_stage_ends(split, first_stage, second_stage):
    for group in split.reactive_all_mapping:
        now, before = first_stage[group.token], first_stage[group.previous_token]
        assert now.current.timestamp_us - before.current.timestamp_us == 500_000
        for pair in group.pairs:
            for first, second in zip((now, before), (second_stage[token] for token in pair), strict=True):
                assert second.second_stage.original_scene == first.frames[-1].token
                assert second.second_stage.original_token == first.token
                assert second.current.timestamp_us == first.current.timestamp_us + 4_000_000
                assert second.log_name == first.log_name
                assert second.current.roadblock_ids == first.current.roadblock_ids
                assert len(second.frames) == 4
                assert len(second.second_stage.future_objects) == 8


def test_both_of_a_pair_lie_on_one_drive(split, second_stage):
    for group in split.reactive_all_mapping:
        for now, before in group.pairs:
            late, early = second_stage[now].frames, second_stage[before].frames
            assert late[3].timestamp_us - early[3].timestamp_us == 500_000
            for step in range(3):
                np.testing.assert_array_equal(late[step].ego_pose, early[step + 1].ego_pose)
            assert not {frame.token for frame in late} & {frame.token for frame in early}


def test_follow_ups_spread_around_the_recorded_drive(split, first_stage, second_stage):
    for group in split.reactive_all_mapping:
        end = first_stage[group.token].frames[-1]
        distances = [
            np.hypot(*(second_stage[now].current.ego_pose - end.ego_pose)[:2]) for now, _ in group.pairs
        ]
        assert distances[0] == pytest.approx(0.0, abs=1e-6)
        unmoved = second_stage[group.pairs[0][0]].current
        np.testing.assert_allclose(unmoved.ego_velocity, end.ego_velocity, rtol=1e-6)
        np.testing.assert_allclose(unmoved.annotations.boxes, end.annotations.boxes, atol=1e-6)
        assert 0.0 < distances[1] < 1.0
        assert distances[2] > distances[1]


def test_histories_move_as_their_speeds_say(second_stage):
    for window in second_stage.values():
        positions = np.array([frame.ego_pose[:2] for frame in window.frames])
        speeds = np.array([frame.ego_velocity[0] for frame in window.frames])
        moved = np.hypot(*np.diff(positions, axis=0).T) / 0.5
        np.testing.assert_allclose(moved, 0.5 * (speeds[1:] + speeds[:-1]), atol=0.15)


def test_road_users_are_where_the_log_has_them(first_stage, second_stage):
    """Boxes now, lifted from the departed ego, and the future's boxes, against the log's own frames."""
    frames = {f.timestamp_us: f for scene in first_stage.values() for f in scene.frames}
    num_future = 0
    for window in second_stage.values():
        now, logged = window.current, frames[window.current.timestamp_us]
        lifted, expected = (
            dict(
                zip(
                    frame.annotations.track_tokens,
                    global_from_local(frame.annotations.boxes[:, [0, 1, 6]], frame.ego_pose),
                    strict=True,
                )
            )
            for frame in (now, logged)
        )
        common = set(lifted) & set(expected)
        assert len(common) > 0.8 * len(expected)
        for track in common:
            np.testing.assert_allclose(lifted[track][:2], expected[track][:2], atol=1e-6)
        for step, objects in enumerate(window.second_stage.future_objects, start=1):
            assert not objects.velocities[[name not in AGENT_TYPES for name in objects.names]].any()
            later = frames.get(now.timestamp_us + step * 500_000)
            if later is None:
                continue
            num_future += 1
            boxes = global_from_local(later.annotations.boxes[:, [0, 1, 6]], later.ego_pose)
            known = dict(zip(later.annotations.track_tokens, boxes, strict=True))
            assert set(objects.track_tokens) == set(known)
            for track, pose in zip(objects.track_tokens, objects.poses, strict=True):
                np.testing.assert_allclose(pose[:2], known[track][:2], atol=1e-6)
            assert window.second_stage.future_lights[step - 1] == later.traffic_lights
    assert num_future > 0


def test_images_are_those_of_the_departed_ego(root, split, first_stage, second_stage):
    paths = DatasetPaths.from_root(root)
    for scene in first_stage.values():
        image = read_image(paths.sensors("test"), scene.current.cameras["CAM_F0"].data_path)
        assert image.shape == (1080, 1920, 3)
    for group in split.reactive_all_mapping:
        images = []
        for now, _ in group.pairs:
            window = second_stage[now]
            assert [set(frame.cameras) for frame in window.frames] == [set(), set(), set(), {"CAM_F0"}]
            path = window.current.cameras["CAM_F0"].data_path
            images.append(read_image(paths.synthetic_sensor_path, path).astype(int))
        for image in images[1:]:
            assert (np.abs(image - images[0]).max(axis=2) > 20).mean() > 0.002
    assert len(list(paths.synthetic_sensor_path.rglob("*.jpg"))) == 12


def test_the_second_stage_can_be_added_to_a_dataset_and_changes_nothing_else(root, tmp_path):
    plain = replace(SMALL, output=str(tmp_path), num_two_stage_groups=0)
    make_world(plain, show_progress=False)
    before = _hashes(tmp_path)
    assert not (tmp_path / "navhard_two_stage").exists()
    make_world(replace(SMALL, output=str(tmp_path)), show_progress=False)
    after = _hashes(tmp_path)
    assert before.items() <= after.items()
    assert after == _hashes(root)  # the same as in one go


def test_a_lost_stamp_makes_the_same_files_again_and_other_options_are_refused(root):
    before = _hashes(root)
    (stamp,) = (root / ".world").glob("*.two_stage.json")
    stamp.unlink()
    (root / "navhard_two_stage" / "synthetic_scenes_attributes.csv").unlink()
    make_world(replace(SMALL, output=str(root)), show_progress=False)
    assert _hashes(root) == before
    with pytest.raises(DataError, match="followups_per_group"):
        make_world(replace(SMALL, output=str(root), followups_per_group=4), show_progress=False)


def test_without_test_drives_there_is_no_second_stage(tmp_path):
    config = replace(SMALL, output=str(tmp_path), num_val_logs=1, num_test_logs=0, images="none")
    assert make_world(config, show_progress=False).num_second_stage == 0
    assert not (tmp_path / "navhard_two_stage").exists()


def test_moments_leave_room_before_and_after_and_between():
    # 21 frames: only the frame 4 has 4 frames before it and 16 after it
    assert choose_starts(21, [], 1, seed=0) == [4]
    with pytest.raises(DataError, match="2 two-stage groups do not fit into a drive of 21 frames, 1 do"):
        choose_starts(21, [], 2, seed=0)
    starts = choose_starts(101, [3, 11, 23, 47, 90], 3, seed=0)
    assert starts == [11, 23, 47]  # samples first; 3 and 90 lack frames before or after
    many = choose_starts(101, [11, 12, 13], 20, seed=0)
    assert len(many) == 20
    assert min(np.diff(many)) >= 2
    assert 4 <= many[0] <= many[-1] <= 84


@pytest.mark.parametrize("changes", [{"num_two_stage_groups": -1}, {"followups_per_group": 0}])
def test_options_are_checked(changes):
    with pytest.raises(DataError, match="followups_per_group must be at least 1"):
        replace(SMALL, **changes)
