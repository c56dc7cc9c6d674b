"""Explanations: by hand in the toy world, and in step with the score on many random trajectories."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from kernel_toy_world import (
    Area,
    Track,
    cone,
    drivable_polygons,
    ego_at_origin,
    parked_car,
    road,
    straight_poses,
    strip,
    toy_scene,
)
from test_kernel_scorer import BUSY, random_poses
from test_scorer_v2 import make_scene

from drivefine_agent.scoring.explain import (
    Explained,
    Reason,
    explain_extended_comfort,
    explain_v1,
    explain_v2,
)
from drivefine_agent.scoring.extended_comfort import extended_comfort
from drivefine_agent.scoring.scorer import score_v1
from drivefine_agent.scoring.scorer_v2 import HUMAN_FILTERS, ReactiveHuman, score_v2
from drivefine_agent.scoring.types import PolygonKind, ScoringSceneV2
from drivefine_agent.scoring.warm_up import made_up_scene

SUB_SCORES_V1 = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "comfort",
)
SUB_SCORES_V2 = (*SUB_SCORES_V1[:-1], "traffic_light_compliance", "lane_keeping", "history_comfort")


def reasons_for(explained: Explained, rule: str) -> list[Reason]:
    return [reason for reason in explained.reasons if reason.rule == rule]


def only(explained: Explained, rule: str) -> Reason:
    (reason,) = reasons_for(explained, rule)
    return reason


def test_a_perfect_drive_needs_no_reasons():
    assert explain_v1(toy_scene(), straight_poses()).reasons == ()


def test_collision_and_time_to_collision_name_road_user_and_time():
    """At 5 m/s the front bumper (4.049 m ahead) reaches the car's tail at 12.75 m after 1.74 s; seen 0.9 s
    ahead from 0.84 s on. The states are 0.1 s apart."""
    scene = replace(toy_scene(tracks=[parked_car(15.0)]), track_tokens=("4f2a77",))
    explained = explain_v1(scene, straight_poses(5.0))
    hit = only(explained, "no_at_fault_collisions")
    assert (hit.state, hit.track, hit.value) == (18, 0, 0.0)
    assert hit.text == "at-fault collision at 1.8 s with vehicle 4f2a (which stands)"
    ttc = only(explained, "time_to_collision_within_bound")
    assert (ttc.state, ttc.track) == (9, 0)
    assert ttc.text == "time to collision at 0.9 s: 0.9 s from vehicle 4f2a"


def test_a_cone_and_a_moving_car_are_told_apart():
    """The car ahead drives 1 m/s: the gap of 12.75 - 4.049 m closes at 4 m/s within 2.18 s."""
    slow = toy_scene(tracks=[Track(lambda t: (15.0 + t, 0.0))])
    assert only(explain_v1(slow, straight_poses(5.0)), "no_at_fault_collisions").text.endswith(
        "at 2.2 s with vehicle 0 (front contact)"
    )
    scene = toy_scene(tracks=[cone(15.0)])
    scene = replace(scene, track_type=np.array([3]))
    hit = only(explain_v1(scene, straight_poses(5.0)), "no_at_fault_collisions")
    assert hit.value == 0.5
    assert hit.text.endswith("with traffic cone 0 (a static object)")


def test_the_corner_that_leaves_the_drivable_area_is_named():
    """The road ends at x = 10 for y > 0: only the front left corner (4.049 m ahead) is over it after 1.2 s,
    the rear left one (1.127 m behind) not before 2.3 s."""
    areas = [
        Area(shapely.box(-50.0, -1.75, 150.0, 0.0), PolygonKind.ROADBLOCK),
        Area(shapely.box(-50.0, -1e-3, 10.0, 1.75), PolygonKind.ROADBLOCK),
        Area(strip(-2.0, 2.0), PolygonKind.LANE, True),
    ]
    left = only(explain_v1(toy_scene(areas), straight_poses(5.0)), "drivable_area_compliance")
    assert left.state == 12
    assert left.text == "leaves the drivable area at 1.2 s: front left corner"


def test_driving_direction_tells_when_the_limit_was_reached():
    """4.5 m/s off the route: 0.45 m a step, 2 m at the fifth; 11 steps are 4.95 m, less than 6."""
    off = only(
        explain_v1(toy_scene(road(on_route=False), initial_state=ego_at_origin(4.5)), straight_poses(4.5)),
        "driving_direction_compliance",
    )
    assert (off.value, off.state) == (0.5, 5)
    assert off.text.startswith("4.9 m within") or off.text.startswith("5.0 m within")


def test_comfort_names_the_series_its_value_and_its_bound():
    scene = toy_scene(initial_state=ego_at_origin(15.0))
    text = only(explain_v1(scene, 0.2 * straight_poses(5.0)), "comfort").text  # from 15 to 1 m/s
    assert text.startswith("uncomfortable: longitudinal acceleration -")
    assert "< -4.05 m/s² at " in text


def test_lane_keeping_and_red_lights_of_navsim_2():
    """The ego drives 0.8 m beside the centre line from the start: the twentieth state is the one at 1.9 s. A
    red connector begins at x = 10: the front bumper is there after 1.19 s."""
    connector = drivable_polygons([Area(strip(-2.0, 2.0, 10.0, 20.0), PolygonKind.LANE_CONNECTOR)])
    scene = make_scene(
        red_light_xy=connector.xy,
        red_light_ring_offsets=connector.ring_offsets,
        red_light_part_offsets=connector.part_offsets,
        red_light_on=np.ones((41, 1), dtype=bool),
        red_light_ids=("77",),
        centerline=np.array([[-20.0, 0.8], [150.0, 0.8]]),
    )
    explained = explain_v2(scene, straight_poses(5.0), human_penalty_filter="false")
    assert only(explained, "lane_keeping").state == 19
    light = only(explained, "traffic_light_compliance")
    assert (light.state, light.text) == (12, "stands in the red lane connector 77 at 1.2 s")


def test_what_the_recorded_driver_fails_too_is_marked_as_lifted():
    """Human and plan both run into the parked car."""
    scene = make_scene(tracks=[parked_car(15.0)])
    lifted = explain_v2(scene, straight_poses(5.0))
    assert lifted.scores["no_at_fault_collisions"] == 1.0
    assert only(lifted, "no_at_fault_collisions").is_lifted
    counted = explain_v2(scene, straight_poses(5.0), human_penalty_filter="false")
    assert not only(counted, "no_at_fault_collisions").is_lifted


def test_progress_is_compared_with_the_reference():
    """Half the reference's 40 m, and the cone halves what counts."""
    scene = toy_scene(tracks=[cone(15.0)], reference_progress=40.0)
    text = only(explain_v1(scene, straight_poses(5.0)), "ego_progress").text
    assert text == ("20.0 m along the route, the reference planner 40.0 m (times 0.5)")


def test_extended_comfort_names_what_differs():
    """Accelerations of 1 and 0 m/s² all the way: they differ by 1 > 0.7, their jerks and headings by 0."""
    now, before = np.zeros((2, 41)), np.zeros((2, 41))
    assert explain_extended_comfort(now, before, 0.5) is None
    now[0] = 1.0
    reason = explain_extended_comfort(now, before, 0.5)
    assert reason is not None
    assert extended_comfort(now, before, 0.5) == reason.value == 0.0
    assert reason.text == (
        "plans of two frames 0.5 s apart differ (root mean square): acceleration by 1.00 > 0.7 m/s²"
    )


def check_agreement(explained: Explained, official: dict[str, float], names: tuple[str, ...]) -> None:
    """A rule has a (counted) reason iff its sub-score is below 1, and the worst reason is the score."""
    for name in names:
        assert explained.scores[name] == official[name], name
        counted = [r.value for r in reasons_for(explained, name) if not r.is_lifted]
        assert min(counted, default=1.0) == official[name], (name, counted, official[name])


def wild_poses(seed: int, count: int) -> np.ndarray:
    """Smooth ones, and every third with jumps between its poses."""
    poses = random_poses(seed, count)
    poses[::3] += np.random.default_rng(seed).normal(0.0, (2.0, 1.0, 0.3), (len(poses[::3]), 8, 3))
    return poses


def test_reasons_and_scores_never_disagree_under_navsim_1():
    poses = wild_poses(1, 150)
    scores = score_v1(BUSY, poses)
    for row in range(len(poses)):
        official = {name: float(getattr(scores, name)[row]) for name in SUB_SCORES_V1}
        check_agreement(explain_v1(BUSY, poses[row]), official, SUB_SCORES_V1)
    for name in SUB_SCORES_V1:  # the check means something only where both happen
        assert 0 < np.sum(getattr(scores, name) < 1.0) < len(poses)


@pytest.mark.parametrize("traffic", ["non_reactive", "reactive"])
def test_reasons_and_scores_never_disagree_under_navsim_2(traffic):
    light = drivable_polygons([Area(strip(-3.0, 0.5, 18.0, 30.0), PolygonKind.LANE_CONNECTOR)])
    if traffic == "reactive":
        scene = made_up_scene(ScoringSceneV2, 41)
        human = ReactiveHuman(np.array([False, True, False, False, True, False]))
        assert scene.kept("reactive_human", lambda: human) is human  # as if it had driven so
    else:
        tracks = [
            parked_car(3.0),
            cone(22.0, -2.5),
            Track(lambda t: (14.0, -9.0 + 3.0 * t), heading=np.pi / 2),
        ]
        areas = [
            Area(strip(-6.0, 6.0), PolygonKind.ROADBLOCK),
            Area(strip(-6.0, 0.1), PolygonKind.LANE, True),
            Area(strip(-8.0, 8.0, 25.0, 35.0), PolygonKind.INTERSECTION),
        ]
        scene = make_scene(
            areas,
            tracks,
            overlaps_at_start=np.array([True, False, False]),
            human_zeros_log_replay=np.array([False, True, False, False, True, False]),
            red_light_xy=light.xy,
            red_light_ring_offsets=light.ring_offsets,
            red_light_part_offsets=light.part_offsets,
            red_light_on=np.ones((41, 1), dtype=bool),
        )
    poses = wild_poses(2, 30 if traffic == "reactive" else 90)
    for rule in HUMAN_FILTERS:
        scores = score_v2(scene, poses, traffic=traffic, human_penalty_filter=rule)
        for row in range(len(poses)):
            official = {name: float(getattr(scores, name)[row]) for name in SUB_SCORES_V2}
            explained = explain_v2(scene, poses[row], traffic=traffic, human_penalty_filter=rule)
            check_agreement(explained, official, SUB_SCORES_V2)
