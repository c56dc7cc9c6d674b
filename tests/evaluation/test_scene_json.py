"""The JSON of a scene, decoded by a reader of its own and compared with what the scene is known to hold."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from scenes_by_hand import camera, scoring_scene

from drivefine_agent.evaluation.birdseye import Area, BirdsEyeView
from drivefine_agent.evaluation.paths import GENERATED_STYLE, REFINED_STYLE
from drivefine_agent.evaluation.scene_json import Plan, differences, scene_json, tracks_json
from drivefine_agent.evaluation.scene_view import birdseye_view
from drivefine_agent.scoring.contacts import TrackBoxes
from drivefine_agent.scoring.explain import explain_v1

STRAIGHT = np.column_stack([4.0 * np.arange(1, 9), np.zeros(8), np.zeros(8)])
NEAR = (-20.0, -20.0, 60.0, 20.0)


def restored(flat: list[int], width: int, scale: float) -> np.ndarray:
    return np.cumsum(np.array(flat).reshape(-1, width), axis=0) / scale


def plan(key: str = "final") -> Plan:
    return Plan(key, STRAIGHT, REFINED_STYLE, explain_v1(scoring_scene(), STRAIGHT), is_wide=True)


def content(**changes: Any) -> dict[str, Any]:
    scene = scoring_scene()
    arguments: dict[str, Any] = {
        "scene": scene,
        "view": birdseye_view(scene),
        "plans": [plan()],
        "image": np.full((1080, 1920, 3), 90, dtype=np.uint8),
        "camera": camera(),
        **changes,
    }
    return scene_json(**arguments)


def test_rounding_does_not_add_up_along_a_line() -> None:
    line = np.cumsum(np.full((500, 2), 0.0333), axis=0)
    np.testing.assert_allclose(restored(differences(line, 100.0), 2, 100.0), line, atol=0.00501)


def test_trajectory_and_simulated_states_come_back_in_the_ego_frame() -> None:
    made = plan()
    entry = content(plans=[made])["plans"]["final"]
    poses = restored(entry["poses"], 3, 1.0) / (100.0, 100.0, 1000.0)
    np.testing.assert_allclose(poses, np.vstack([np.zeros(3), STRAIGHT]), atol=0.006)
    states = restored(entry["states"], 3, 1.0) / (100.0, 100.0, 1000.0)
    assert states.shape == (41, 3)
    # The ego looks along the global y axis, from (1000, 2000).
    assert made.explained is not None
    np.testing.assert_allclose(states[:, 0], made.explained.states[:, 1] - 2000.0, atol=0.006)
    np.testing.assert_allclose(states[:, 1], 1000.0 - made.explained.states[:, 0], atol=0.006)


def test_road_users_move_stand_and_leave() -> None:
    """The car starts at 20 m, drives 5 m/s and is there up to state 34; the cone stands at 10.15, 3.15."""
    scene = scoring_scene()
    car, cone = tracks_json(scene, TrackBoxes.from_scene(scene), scene.initial_state[:3], NEAR)
    assert (car["k"], car["n"], car["i"], car["s"]) == ("vehicle", "car", 0, [400, 200])
    assert car["t"] == [0, 34]
    poses = restored(car["p"], 3, 1.0)
    np.testing.assert_allclose(poses[:, 0], 2000 + 50 * np.arange(35), atol=0.51)
    np.testing.assert_allclose(poses[:, 1:], 0.0, atol=0.51)
    assert (cone["k"], "t" in cone) == ("traffic_cone", False)
    np.testing.assert_allclose(restored(cone["p"], 3, 1.0)[:, :2], [[1015, 315]], atol=0.51)


def test_a_road_user_that_comes_and_goes_is_there_only_then() -> None:
    scene = scoring_scene()
    exists = scene.track_exists.copy()
    exists[5:9, 0] = False
    scene = replace(scene, track_exists=exists)
    car = tracks_json(scene, TrackBoxes.from_scene(scene), scene.initial_state[:3], NEAR)[0]
    assert car["t"] == [0, 4, 9, 34]
    assert len(car["p"]) == 3 * (5 + 26)


def test_what_is_far_away_is_left_out() -> None:
    scene = scoring_scene()
    near = (-20.0, -20.0, 15.0, 20.0)  # the car is at 20 m and drives away
    found = tracks_json(scene, TrackBoxes.from_scene(scene), scene.initial_state[:3], near)
    assert [entry["n"] for entry in found] == ["cone"]


def test_map_is_cut_to_the_window_and_keeps_its_holes() -> None:
    square = np.array([[-500.0, -500.0], [500.0, -500.0], [500.0, 500.0], [-500.0, 500.0], [-500.0, -500.0]])
    hole = square / 100.0
    data = content(view=BirdsEyeView(areas=(Area("lane", (square, hole)),)))
    ((kind, exterior, interior),) = data["areas"]
    assert kind == "lane"
    low_x, high_x, low_y, high_y = data["window"]
    outer = restored(exterior, 2, 10.0)
    np.testing.assert_allclose(outer.min(axis=0), [low_x - 3, low_y - 3], atol=0.06)
    np.testing.assert_allclose(outer.max(axis=0), [high_x + 3, high_y + 3], atol=0.06)
    inner = restored(interior, 2, 10.0)
    np.testing.assert_allclose([inner.min(), inner.max()], [-5.0, 5.0], atol=0.06)


def test_picture_and_painted_road_share_one_scale() -> None:
    data = content(image_width_px=320)
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data["image"]), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (180, 320, 3)
    assert data["size"] == [1000, 562]
    line, wide = data["plans"]["final"]["road"]
    assert line.startswith("M")
    assert len(wide) > 0
    numbers = [int(n) for n in line.replace("M", " ").replace("L", " ").replace("Z", " ").split()]
    assert min(numbers[1::2]) > 281  # below the middle of the picture: on the road


def test_only_the_trajectory_that_counts_is_painted_wide() -> None:
    generated = Plan("generated", STRAIGHT, GENERATED_STYLE, None)
    plans = content(plans=[plan(), generated])["plans"]
    assert (len(plans["final"]["road"]), len(plans["generated"]["road"])) == (2, 1)
    assert "states" not in plans["generated"]


@pytest.mark.parametrize("own", [True, False])
def test_traffic_that_reacts_is_told_with_the_trajectory(own: bool) -> None:
    entry = content(plans=[replace(plan(), has_own_traffic=own)])["plans"]["final"]
    assert ("tracks" in entry) is own
