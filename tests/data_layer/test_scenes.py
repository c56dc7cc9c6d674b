from dataclasses import replace

import numpy as np
import pytest

from drivefine_agent.data.log_writer import write_log
from drivefine_agent.data.scenes import (
    SceneDataWarning,
    SceneFilter,
    frame_gaps,
    future_poses,
    history_poses,
    iter_windows,
    load_scenes,
    local_poses,
)
from drivefine_agent.data.types import Frame
from drivefine_agent.errors import DataError


def make_log(name="log", num_frames=20, no_route=(), late_from=None):
    """A straight drive to the east at 2 m per frame; tokens are `<name>_<frame>`."""
    return [
        Frame(
            token=f"{name}_{index}",
            timestamp_us=1_000_000 + 500_000 * index + (1_000_000 if late_from and index >= late_from else 0),
            ego_pose=np.array([100.0 + 2.0 * index, 50.0, 0.0]),
            ego_velocity=np.array([4.0, 0.0]),
            ego_acceleration=np.zeros(2),
            driving_command=np.array([0, 1, 0, 0]),
            roadblock_ids=() if index in no_route else ("7",),
            traffic_lights=(),
            annotations=None,
            log_name=name,
            map_name="us-ma-boston",
            scene_token="scene",
        )
        for index in range(num_frames)
    ]


def current_frames(frames, **fields):
    return [int(window.token.split("_")[1]) for window in iter_windows(frames, SceneFilter(**fields))]


def test_windows_are_disjoint_without_an_interval_and_tails_are_dropped():
    # 4 + 10 frames from 0 on, the next would need frames 14 to 27
    assert current_frames(make_log(num_frames=20)) == [3]
    assert current_frames(make_log(num_frames=28)) == [3, 17]


def test_an_interval_of_one_slides():
    assert current_frames(make_log(num_frames=16), frame_interval=1) == [3, 4, 5]


def test_the_identity_is_the_token_of_the_last_history_frame():
    (window, *_) = iter_windows(make_log(), SceneFilter(num_history_frames=2, num_future_frames=3))
    assert window.token == "log_1"
    assert [frame.token for frame in window.frames] == ["log_0", "log_1", "log_2", "log_3", "log_4"]
    assert window.frame_at(-1).token == "log_0"
    assert window.frame_at(3).token == "log_4"


def test_only_the_current_frame_needs_a_route():
    frames = make_log(num_frames=17, no_route=(4, 9))
    assert current_frames(frames, frame_interval=1) == [3, 5, 6]
    assert current_frames(frames, frame_interval=1, has_route=False) == [3, 4, 5, 6]


def test_tokens_choose_windows():
    assert current_frames(make_log(num_frames=20), frame_interval=1, tokens=("log_5", "log_4")) == [4, 5]


def test_local_history_and_future_of_a_straight_drive():
    (window,) = iter_windows(make_log(num_frames=14), SceneFilter())
    np.testing.assert_allclose(history_poses(window), [[-6, 0, 0], [-4, 0, 0], [-2, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(future_poses(window), [[2.0 * k, 0, 0] for k in range(1, 9)])
    np.testing.assert_allclose(
        local_poses(window.frames[:1], np.array([100.0, 49.0, np.pi / 2])), [[1, 0, -np.pi / 2]], atol=1e-12
    )


def test_more_future_than_the_window_holds_is_refused():
    (window,) = iter_windows(make_log(num_frames=8), SceneFilter(num_future_frames=4))
    with pytest.raises(DataError, match=r"8 future poses .* holds 4"):
        future_poses(window)


@pytest.fixture
def log_dir(tmp_path):
    """Two logs, `a` and `b`, whose files are written in the wrong order."""
    for name in ("b", "a"):
        write_log(tmp_path / f"{name}.pkl", make_log(name, num_frames=16))
    return tmp_path


def test_scenes_come_by_file_name_and_then_by_time(log_dir):
    scenes = load_scenes(log_dir, SceneFilter(frame_interval=1))
    assert [scene.token for scene in scenes] == ["a_3", "a_4", "a_5", "b_3", "b_4", "b_5"]
    assert scenes[0].log_path == log_dir / "a.pkl"


def test_log_names_and_max_scenes_choose(log_dir):
    only_b = load_scenes(log_dir, SceneFilter(frame_interval=1, log_names=("b",)))
    assert [scene.token for scene in only_b] == ["b_3", "b_4", "b_5"]
    assert len(load_scenes(log_dir, SceneFilter(frame_interval=1, max_scenes=4))) == 4


def test_tokens_without_a_sample_are_one_error_with_count_first_few_and_reasons(log_dir):
    absent = tuple(f"x{index}" for index in range(7))
    with pytest.raises(DataError, match="9 of the 10 tokens") as error:
        load_scenes(log_dir, SceneFilter(frame_interval=1, tokens=("a_3", "a_6", "b_1", *absent)))
    message = str(error.value)
    assert "'a_6', 'b_1', 'x0', 'x1', 'x2' and 4 more" in message
    assert "it is frame 6 of 16 in a.pkl, too close to the end" in message


def test_a_token_off_the_stride_or_without_route_says_so(tmp_path):
    write_log(tmp_path / "a.pkl", make_log("a", num_frames=40, no_route=(17,)))
    with pytest.raises(DataError, match=r"'a_4': it is frame 4 in a\.pkl, off the stride of 14"):
        load_scenes(tmp_path, SceneFilter(tokens=("a_4",)))
    with pytest.raises(DataError, match=r"frame 17 in a\.pkl has no route"):
        load_scenes(tmp_path, SceneFilter(tokens=("a_17",)))


def test_absent_tokens_can_be_a_warning(log_dir):
    with pytest.warns(SceneDataWarning, match="1 of the 2 tokens"):
        scenes = load_scenes(log_dir, SceneFilter(frame_interval=1, tokens=("a_3", "x")), on_missing="warn")
    assert [scene.token for scene in scenes] == ["a_3"]


def test_a_log_of_the_filter_without_a_file_is_an_error(log_dir):
    with pytest.raises(DataError, match="1 logs of the filter have no file: 'c'"):
        load_scenes(log_dir, SceneFilter(log_names=("a", "c")))


def test_a_token_in_two_logs_is_an_error(tmp_path):
    for name in ("a", "b"):
        write_log(tmp_path / f"{name}.pkl", [replace(f, log_name=name) for f in make_log("same")])
    with pytest.raises(DataError, match=r"'same_3' in both .*a\.pkl and .*b\.pkl"):
        load_scenes(tmp_path, SceneFilter())


def test_logs_too_short_for_any_window_are_an_error(log_dir):
    with pytest.raises(DataError, match="no window of 34 frames"):
        load_scenes(log_dir, SceneFilter(num_future_frames=30))


def test_windows_over_a_gap_are_kept_and_reported(tmp_path):
    # the step from frame 9 to 10 takes 1.5 s; every window that starts at frames 0 to 2 holds it
    write_log(tmp_path / "a.pkl", make_log("a", num_frames=16, late_from=10))
    with pytest.warns(SceneDataWarning, match=r"3 of 3 windows .* \(longest 1\.50 s\).*'a_3 in a'"):
        scenes = load_scenes(tmp_path, SceneFilter(frame_interval=1))
    assert len(scenes) == 3
    assert frame_gaps(scenes[0].frames) == [(9, pytest.approx(1.5))]
    with pytest.raises(DataError, match=r"3 of 3 windows"):
        load_scenes(tmp_path, SceneFilter(frame_interval=1), on_gap="error")


def test_a_window_beside_the_gap_is_not_reported(tmp_path, recwarn):
    write_log(tmp_path / "a.pkl", make_log("a", num_frames=16, late_from=15))
    load_scenes(tmp_path, SceneFilter(frame_interval=1, tokens=("a_3",)))
    assert not recwarn.list


@pytest.mark.parametrize("folder", ["absent", "."], ids=["no folder", "empty folder"])
def test_a_folder_without_logs_is_named(tmp_path, folder):
    with pytest.raises(DataError, match=r"no folder of logs|no log"):
        load_scenes(tmp_path / folder, SceneFilter())


@pytest.mark.parametrize(
    "fields",
    [{"num_history_frames": 0}, {"num_future_frames": -1}, {"frame_interval": 0}, {"max_scenes": 0}],
    ids=str,
)
def test_a_filter_without_sense_is_refused(fields):
    with pytest.raises(DataError, match=next(iter(fields))):
        SceneFilter(**fields)
