"""Answers worked out by hand for scenes made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from drivefine_agent.data.scene_questions import plan_path, plan_speed, road_users_text, scene_turns
from drivefine_agent.data.types import Annotations, Frame, SceneWindow

# x, y of pedestrians and others in front of an ego at rest.
OBJECTS = [
    ("pedestrian", 30.0, -1.9),  # no offset worth a word
    ("bicycle", 12.4, 3.2),
    ("vehicle", 5.0, 0.0),  # not vulnerable
    ("pedestrian", -8.0, 0.0),  # behind
    ("pedestrian", 39.0, 9.0),  # 40.02 m away
    ("pedestrian", 20.0, -5.6),
]


def window(speeds: np.ndarray, end: tuple[float, float, float] = (20.0, 0.0, 0.0)) -> SceneWindow:
    """4 s at the given speeds (9,), the path a straight line to `end` in a frame turned by a right angle."""
    boxes = np.array([[x, y, 0.0, 1.0, 1.0, 1.0, 0.0] for _, x, y in OBJECTS])
    names = tuple(name for name, _, _ in OBJECTS)
    annotations = Annotations(boxes, names, np.zeros((len(names), 3)), names, names)
    frames = []
    for i in range(-3, 9):
        share = max(i, 0) / 8
        x, y, heading = (share * value for value in end)
        pose = np.array([100.0 - y, 50.0 + x, np.pi / 2 + heading])
        velocity = np.array([speeds[max(i, 0)], 0.0])
        frames.append(
            Frame(
                token=f"{i}",
                timestamp_us=500_000 * i,
                ego_pose=pose,
                ego_velocity=velocity,
                ego_acceleration=np.zeros(2),
                driving_command=np.array([0, 1, 0, 0]),
                roadblock_ids=(),
                traffic_lights=(),
                annotations=annotations,
            )
        )
    return SceneWindow("log", "map", "scene", tuple(frames), 4, 8)


def test_road_users_are_named_nearest_first() -> None:
    expected = (
        "bicycle 12 m ahead, 3 m to the left; pedestrian 20 m ahead, 6 m to the right; pedestrian 30 m ahead."
    )
    assert road_users_text(window(np.full(9, 5.0))) == expected


@pytest.mark.parametrize(
    ("first", "last", "word"),
    [(0.0, 1.9, "STOP"), (5.0, 8.0, "KEEP"), (5.0, 8.1, "ACCELERATE"), (5.0, 1.9, "DECELERATE")],
)
def test_speed_by_the_published_thresholds(first: float, last: float, word: str) -> None:
    assert plan_speed(window(np.linspace(first, last, 9))) == word


@pytest.mark.parametrize(
    ("end", "word"),
    [
        ((20.0, 3.9, 0.5), "STRAIGHT"),
        ((20.0, 4.1, np.deg2rad(5.1)), "LEFT_TURN"),
        ((20.0, 4.1, np.deg2rad(4.9)), "LEFT_CHANGE"),
        ((20.0, -4.1, np.deg2rad(-30.0)), "RIGHT_TURN"),
        ((20.0, -4.1, 0.0), "RIGHT_CHANGE"),
    ],
)
def test_path_by_the_published_thresholds(end: tuple[float, float, float], word: str) -> None:
    assert plan_path(window(np.full(9, 5.0), end)) == word


def test_scenes_without_annotations_have_no_question_about_road_users() -> None:
    annotated = window(np.full(9, 5.0))
    bare = replace(annotated, frames=tuple(replace(frame, annotations=None) for frame in annotated.frames))
    assert [turn.answer for turn in scene_turns(bare)] == ["KEEP, STRAIGHT"]
    assert len(scene_turns(annotated)) == 2
