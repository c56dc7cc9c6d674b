import numpy as np
import pytest
from numpy.typing import NDArray

from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.navsim_inputs import (
    agent_input_from_window,
    blank_image,
    human_poses,
    observation_from_agent_input,
    observation_from_window,
    scene_from_window,
)

Image = NDArray[np.uint8]


def test_poses_are_local_float32_and_end_at_the_origin(
    windows: list[SceneWindow], front_image: Image
) -> None:
    for window in windows:
        agent_input = agent_input_from_window(window, front_image)
        assert [status.ego_pose.dtype for status in agent_input.ego_statuses] == [np.float32] * 4
        assert agent_input.ego_statuses[-1].ego_pose.tolist() == [0, 0, 0]
        x, y, heading = window.current.ego_pose
        for status, frame in zip(agent_input.ego_statuses, window.frames, strict=False):
            back_x = x + np.cos(heading) * status.ego_pose[0] - np.sin(heading) * status.ego_pose[1]
            back_y = y + np.sin(heading) * status.ego_pose[0] + np.cos(heading) * status.ego_pose[1]
            np.testing.assert_allclose([back_x, back_y], frame.ego_pose[:2], atol=1e-4)


def test_scene_and_window_give_the_same_observation_to_the_last_bit(
    windows: list[SceneWindow], front_image: Image
) -> None:
    """NAVSIM makes an agent input from a log (float32) or a Scene (float64); the planner sees the same."""
    for window in windows:
        first = observation_from_window(window, front_image)
        second = observation_from_agent_input(scene_from_window(window, front_image).get_agent_input())
        for name in ("history_poses", "velocity", "acceleration", "driving_command", "image"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


def test_scene_and_window_give_the_same_demonstration(windows: list[SceneWindow]) -> None:
    for window in windows:
        poses = scene_from_window(window, None).get_future_trajectory(8).poses
        np.testing.assert_allclose(poses, human_poses(window), atol=1e-12)


def test_only_the_current_front_camera_is_given(windows: list[SceneWindow], front_image: Image) -> None:
    cameras = agent_input_from_window(windows[0], front_image).cameras
    assert cameras[-1].cam_f0.image is front_image
    assert cameras[-1].cam_f0.intrinsics.shape == (3, 3)
    assert all(frame.cam_f0.image is None for frame in cameras[:-1])
    assert cameras[-1].cam_l0.image is None


def test_blank_image_is_grey_and_leaves_the_rest(windows: list[SceneWindow], front_image: Image) -> None:
    observation = observation_from_window(windows[0], front_image)
    blank = blank_image(observation)
    assert blank.image.shape == front_image.shape
    assert np.unique(blank.image).tolist() == [128]
    np.testing.assert_array_equal(blank.history_poses, observation.history_poses)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ego_velocity", np.array([np.inf, 0]), "velocity must be finite"),
        ("driving_command", np.array([1, 0, 1, 0]), "driving_command must be one-hot"),
        ("driving_command", np.array([0, 1, 0]), "driving_command must be one-hot"),
    ],
)
def test_malformed_inputs_are_named(
    windows: list[SceneWindow], front_image: Image, field: str, value: NDArray[np.float64], message: str
) -> None:
    agent_input = agent_input_from_window(windows[0], front_image)
    setattr(agent_input.ego_statuses[-1], field, value)
    with pytest.raises(DataError, match=message):
        observation_from_agent_input(agent_input)


def test_malformed_images_are_named(windows: list[SceneWindow]) -> None:
    with pytest.raises(DataError, match=r"uint8 RGB, got \(4, 4\) float64: .*; scene " + windows[0].token):
        observation_from_window(windows[0], np.zeros((4, 4)))  # type: ignore[arg-type]


def test_short_history_is_named(windows: list[SceneWindow], front_image: Image) -> None:
    agent_input = agent_input_from_window(windows[0], front_image)
    agent_input.ego_statuses = agent_input.ego_statuses[1:]
    with pytest.raises(DataError, match="4 history frames, got 3"):
        observation_from_agent_input(agent_input)
