from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import SceneFilter, load_scenes
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import SceneError
from drivefine_agent.scoring.build import build_scoring_scene


@pytest.fixture(scope="module")
def window(navsim_mini: Path) -> SceneWindow:
    return load_scenes(navsim_mini / "navsim_logs" / "test", SceneFilter())[0]


@pytest.fixture(scope="module")
def city(navsim_mini: Path, window: SceneWindow):
    return load_map(navsim_mini / "maps", window.map_name)


def with_current(window: SceneWindow, **changes) -> SceneWindow:
    index = window.num_history_frames - 1
    frames = list(window.frames)
    frames[index] = replace(frames[index], **changes)
    return replace(window, frames=tuple(frames))


def test_a_scene_needs_five_seconds_of_future(window: SceneWindow, city) -> None:
    short = replace(window, frames=window.frames[:12], num_future_frames=8)
    with pytest.raises(SceneError, match=f"'{window.token}'.*10 future frames.*got 8.*num_future_frames=10"):
        build_scoring_scene(short, city)


def test_a_scene_needs_a_route(window: SceneWindow, city) -> None:
    with pytest.raises(SceneError, match=f"'{window.token}'.*needs a route"):
        build_scoring_scene(with_current(window, roadblock_ids=()), city)


def test_a_route_of_another_map_is_refused(window: SceneWindow, city) -> None:
    with pytest.raises(SceneError, match=f"'{window.token}'.*'987654'"):
        build_scoring_scene(with_current(window, roadblock_ids=("987654",)), city)


def test_a_scene_needs_annotations(window: SceneWindow, city) -> None:
    with pytest.raises(SceneError, match=f"'{window.token}'.*annotations"):
        build_scoring_scene(with_current(window, annotations=None), city)


def test_preparing_twice_gives_the_same_scene(window: SceneWindow, city) -> None:
    first, second = build_scoring_scene(window, city), build_scoring_scene(window, city)
    np.testing.assert_array_equal(first.reference_states, second.reference_states)
    assert first.reference_progress == second.reference_progress


def test_the_initial_state_is_the_logged_one_without_steering(window: SceneWindow, city) -> None:
    state = build_scoring_scene(window, city).initial_state
    np.testing.assert_allclose(state[:3], window.current.ego_pose, rtol=0, atol=2e-9)
    np.testing.assert_array_equal(state[3:5], window.current.ego_velocity)
    np.testing.assert_array_equal(state[5:7], window.current.ego_acceleration)
    np.testing.assert_array_equal(state[7:], 0.0)


def test_the_ordered_mode_remembers_what_was_overlapped(window: SceneWindow, city) -> None:
    """A vehicle put onto the ego is remembered, and is then invisible to the planner of the next scene."""
    annotations = window.current.annotations
    assert annotations is not None
    boxes = annotations.boxes.copy()
    boxes[0, :2] = (1.0, 0.0)
    overlapping = with_current(window, annotations=replace(annotations, boxes=boxes))
    memory: set[str] = set()
    build_scoring_scene(overlapping, city, collided_memory=memory)
    assert memory == {annotations.track_tokens[0]}
