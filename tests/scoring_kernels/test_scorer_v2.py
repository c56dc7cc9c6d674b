"""NAVSIM 2's sub-scores in the toy world, by hand and by the official numbers of pdm-scorer 8."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from kernel_toy_world import (
    CENTERLINE,
    TIMESTAMP_US,
    Area,
    Track,
    drivable_polygons,
    ego_at_origin,
    moving_states,
    parked_car,
    road,
    score_alone,
    states_of,
    straight_poses,
    strip,
    track_boxes,
)

from drivefine_agent.data.types import Frame, SceneWindow
from drivefine_agent.errors import SceneError, TrafficError, TrajectoryError
from drivefine_agent.scoring.aggregate_v2 import relative_progress, weighted_average
from drivefine_agent.scoring.build_v2 import history_states, judge_reference_and_human
from drivefine_agent.scoring.comfort import history_comfort
from drivefine_agent.scoring.drivable_map import polygon_arrays
from drivefine_agent.scoring.footprint import footprint_points
from drivefine_agent.scoring.lane_keeping import lane_keeping
from drivefine_agent.scoring.scorer_v2 import (
    SurroundingsV2,
    reactive_human,
    score_states_v2,
    score_v2,
    score_v2_rows,
)
from drivefine_agent.scoring.traffic_lights import RedLights, traffic_light_compliance
from drivefine_agent.scoring.types import PolygonKind, ReactiveTraffic, ScoringSceneV2

INTERSECTION = Area(strip(-20, 20), PolygonKind.INTERSECTION)


def surroundings(areas=None, tracks=(), lights=None) -> SurroundingsV2:
    boxes = track_boxes(tracks)
    return SurroundingsV2(
        drivable_polygons(road() if areas is None else areas),
        replace(boxes, corners=boxes.corners[:41], center=boxes.center[:41], exists=boxes.exists[:41]),
        RedLights.none(41) if lights is None else lights,
        CENTERLINE,
    )


def score(states, areas=None, tracks=(), lights=None, ignored=None):
    return score_states_v2(states, surroundings(areas, tracks, lights), None, ignored)


def make_scene(areas=None, tracks=(), speed=5.0, human=None, **changes) -> ScoringSceneV2:
    """A scene at the origin whose reference drives straight on at 10 m/s."""
    polygons, boxes = drivable_polygons(road() if areas is None else areas), track_boxes(tracks)
    state = ego_at_origin(speed)
    scene = ScoringSceneV2(
        token="toy",
        log_name="toy",
        map_name="toy",
        timestamp_us=TIMESTAMP_US,
        initial_state=state,
        human_poses=straight_poses(speed) if human is None else human,
        reference_poses=np.zeros((51, 3)),
        reference_states=states_of(straight_poses(10.0), state)[0],
        reference_progress=np.nan,
        reference_multiplier=np.nan,
        centerline=CENTERLINE,
        polygon_xy=polygons.xy,
        polygon_ring_offsets=polygons.ring_offsets,
        polygon_part_offsets=polygons.part_offsets,
        polygon_kind=polygons.kind,
        polygon_on_route=polygons.on_route,
        track_corners=boxes.corners[:41],
        track_center=boxes.center[:41],
        track_exists=boxes.exists[:41],
        track_is_agent=boxes.is_agent,
        track_is_stopped=boxes.is_stopped,
        track_type=np.zeros(len(tracks), dtype=np.int64),
        history_states=np.zeros((14, 11)),
        overlaps_at_start=np.zeros(len(tracks), dtype=bool),
        exists_in_frame=np.ones(len(tracks), dtype=bool),
    )
    return replace(judge_reference_and_human(scene), **changes)


# -------------------------------------------------------------------------------- collisions and time


def test_time_to_collision_ends_where_the_observation_would_have_to_go_on():
    """The bumper and its 4.5 m look ahead reach a car's tail at 25.25 m from state 34 on: 1.1 judges 40
    states, 2 only those up to 31, from which 0.9 s end with the observation."""
    states = states_of(straight_poses(5.0), ego_at_origin(5.0))
    late, early = parked_car(25.25 + 2.25), parked_car(23.0 + 2.25)
    assert score(states, tracks=[late]).time_to_collision_within_bound[0] == 1.0
    assert score_alone(tracks=[late]).time_to_collision_within_bound[0] == 0.0
    assert score_alone(tracks=[late]).time_to_collision_index[0] == 34
    assert score(states, tracks=[early]).time_to_collision_within_bound[0] == 0.0
    assert score(states, tracks=[early]).time_to_collision_index[0] == 29


def test_a_track_that_overlaps_the_ego_at_the_start_is_left_out_of_replayed_traffic():
    scene = make_scene(tracks=[parked_car(3.0)])
    poses = straight_poses(5.0)[None]
    assert score_v2(scene, poses, human_penalty_filter="false").no_at_fault_collisions[0] == 0.0
    scene = make_scene(tracks=[parked_car(3.0)], overlaps_at_start=np.array([True]))
    scores = score_v2(scene, poses, human_penalty_filter="false")
    assert scores.no_at_fault_collisions[0] == 1.0
    assert scores.time_to_collision_within_bound[0] == 1.0


# -------------------------------------------------------------------------------- direction, lights, lanes


def test_driving_direction_does_not_count_on_intersections():
    states = moving_states(5.0)
    off_route = road(on_route=False)
    assert score(states, off_route).driving_direction_compliance[0] == 0.5  # 11 steps of 0.5 m
    assert score(states, [*off_route, INTERSECTION]).driving_direction_compliance[0] == 1.0
    assert score_alone([*off_route, INTERSECTION]).driving_direction_compliance[0] == 0.5  # NAVSIM 1.1
    # The rear half on the intersection: the centre is off it.
    behind = Area(strip(-20, 20, -50.0, -0.1), PolygonKind.INTERSECTION)
    assert score(states, [*off_route, behind]).driving_direction_compliance[0] == 0.5


def _light(x_low: float, is_red) -> RedLights:
    polygons = np.array([shapely.box(x_low, -1.0, x_low + 10.0, 1.0)], dtype=object)
    return RedLights(polygons, np.asarray(is_red, dtype=bool).reshape(41, 1))


def test_touching_a_red_light_with_the_bumper_in_the_last_state_is_a_violation():
    states = moving_states(5.0)  # the front bumper ends at 20 + 4.049 m
    always = np.ones(41)
    assert score(states, lights=_light(24.049, always)).traffic_light_compliance[0] == 0.0
    assert score(states, lights=_light(24.06, always)).traffic_light_compliance[0] == 1.0
    # Touched from state 33 on (16.5 + 4.049 > 20.5): what counts is whether it is red then.
    for first, last, expected in ((20, 24, 1.0), (30, 32, 1.0), (33, 33, 0.0), (0, 32, 1.0)):
        is_red = np.zeros(41)
        is_red[first : last + 1] = 1
        result = score(states, lights=_light(20.5, is_red))
        assert result.traffic_light_compliance[0] == expected, (first, last)
        assert result.no_at_fault_collisions[0] == result.time_to_collision_within_bound[0] == 1.0


def test_standing_in_a_red_light_from_the_start_is_a_violation():
    states = moving_states(0.0)
    assert score(states, lights=_light(0.0, np.ones(41))).traffic_light_compliance[0] == 0.0


def test_lights_of_many_proposals_do_not_mix():
    states = np.concatenate([moving_states(5.0), moving_states(0.0), moving_states(5.0, y=30.0)])
    corners = np.zeros((3, 41, 4, 2))
    corners[..., 0] = states[..., None, 0] + np.array([4.0, -1.0, -1.0, 4.0])
    corners[..., 1] = states[..., None, 1] + np.array([1.0, 1.0, -1.0, -1.0])
    lights = _light(20.0, np.ones(41))
    assert traffic_light_compliance(corners, lights).tolist() == [0.0, 1.0, 1.0]
    assert traffic_light_compliance(corners[:0], lights).tolist() == []


@pytest.mark.parametrize("seed", range(20))
def test_lights_of_any_shape_are_touched_where_geos_says_so(seed):
    """Rings, strips and polygons that cross themselves; the first touches a box in a corner, give or take."""
    rng = np.random.default_rng(seed)
    states = np.zeros((40, 41, 3))
    states[..., 2] = rng.uniform(-3, 3, (40, 1)) + rng.normal(0.0, 0.02, (40, 1)) * np.arange(41)
    steps = rng.uniform(0.0, 0.8, (40, 1, 1)) * np.stack([np.cos(states[..., 2]), np.sin(states[..., 2])], -1)
    states[..., :2] = np.array([6.6e5, 3.9e6]) + rng.normal(0.0, 15.0, (40, 1, 2)) + np.cumsum(steps, axis=1)
    corners = footprint_points(states)[:, :, :4]
    front_left, rear_left = corners[rng.integers(40), rng.integers(41), :2]
    along = (front_left - rear_left) / np.linalg.norm(front_left - rear_left)
    left = np.array([-along[1], along[0]])
    gap = rng.choice([0.0, 1e-9, -1e-9, 1e-7, -1e-7, 1e-4, -1e-4])
    polygons = [
        shapely.Polygon(front_left + gap * left + np.array([0 * left, 3 * left - along, 3 * left + along])),
        shapely.Point(states[0, 20, :2]).buffer(6.0).difference(shapely.Point(states[0, 20, :2]).buffer(4.0)),
        shapely.LineString(states[1, ::10, :2] + rng.normal(0.0, 2.0, (5, 2))).buffer(1.7),
        shapely.Polygon(states[2, 20, :2] + rng.normal(0.0, 6.0, (7, 2))),
    ]
    lights = RedLights(np.array(polygons, dtype=object), rng.random((41, 4)) < rng.choice([0.1, 1.0]))
    touches = shapely.intersects(shapely.polygons(corners)[..., None], lights.polygons) & lights.is_red
    expected = np.where(touches.any(axis=(1, 2)), 0.0, 1.0)
    np.testing.assert_array_equal(traffic_light_compliance(corners, lights), expected)


def _keeping(offsets, in_intersection=None):
    offsets = np.asarray(offsets, dtype=float)
    center = np.stack([np.linspace(0.0, 20.0, len(offsets)), offsets], axis=-1)[None]
    skipped = np.zeros((1, len(offsets)), dtype=bool)
    if in_intersection is not None:
        skipped[0, in_intersection] = True
    return lane_keeping(center, skipped, CENTERLINE)[0]


def test_lane_keeping_fails_after_two_seconds_beyond_half_a_metre():
    assert _keeping([0.5] * 41) == 1.0  # exactly half a metre is within
    assert _keeping([-0.5] * 41) == 1.0
    assert _keeping([0.51] * 41) == 0.0
    assert _keeping([0.6] * 19 + [0.0] * 22) == 1.0
    assert _keeping([0.6] * 20 + [0.0] * 21) == 0.0
    assert _keeping([0.0] * 21 + [-0.6] * 20) == 0.0
    assert _keeping([0.6] * 19 + [0.4] + [0.6] * 19 + [0.0, 0.0]) == 1.0  # one good state resets


def test_lane_keeping_goes_on_counting_behind_an_intersection():
    offsets = [0.6] * 15 + [9.0] * 6 + [0.6] * 5 + [0.0] * 15
    assert _keeping(offsets, slice(15, 21)) == 0.0
    assert _keeping([0.6] * 15 + [0.0] * 6 + [0.6] * 5 + [0.0] * 15) == 1.0


def test_lane_keeping_measures_to_the_ends_of_the_centreline():
    center = np.zeros((1, 41, 2))
    center[..., 0] = 150.4
    flags = np.zeros((1, 41), dtype=bool)
    assert lane_keeping(center, flags, CENTERLINE)[0] == 1.0
    assert lane_keeping(center + np.array([0.2, 0.0]), flags, CENTERLINE)[0] == 0.0


# -------------------------------------------------------------------------------- progress, averages


def test_progress_is_clipped_and_not_multiplied():
    """Pairs of (raw progress, multiplier) of reference and model, from pdm-scorer 4.6."""

    def pair(reference, model):
        best = max(reference[0] * reference[1], model[0] * model[1])
        return float(relative_progress(np.array([model[0]]), best)[0])

    assert pair((20, 1), (10, 1)) == 0.5
    assert pair((5.0, 1), (2.0, 1)) == 1.0  # the normaliser must exceed 5 m
    assert pair((20, 1), (30, 1)) == 1.0
    assert pair((20, 1), (30, 0)) == 1.0  # 0 under 1.1
    assert pair((20, 1), (30, 0.5)) == 1.0  # 15 / 20 under 1.1
    assert pair((20, 0), (10, 0)) == 1.0
    assert pair((20, 1), (10, 0)) == 0.5


def test_progress_does_not_depend_on_the_rest_of_the_batch():
    scene = make_scene(speed=10.0)
    slow, fast = straight_poses(8.0), straight_poses(14.0)
    alone = score_v2(scene, slow[None]).ego_progress[0]
    together = score_v2(scene, np.stack([slow, fast])).ego_progress
    assert together[0] == alone < 1.0 == together[1]


def test_weighted_average_without_and_with_a_neighbouring_frame():
    ep, ttc, lk, hc = (np.array([v]) for v in (0.8, 1.0, 0.0, 1.0))
    assert weighted_average(ep, ttc, lk, hc)[0] == pytest.approx((4 + 5 + 0 + 2) / 14)
    assert weighted_average(ep, ttc, lk, hc, np.array([1.0]))[0] == pytest.approx((4 + 5 + 0 + 2 + 2) / 16)
    assert weighted_average(ep, ttc, lk, hc, np.array([0.0]))[0] == pytest.approx((4 + 5 + 0 + 2) / 16)
    assert weighted_average(ep, ttc, lk, hc, np.array([np.nan]))[0] == pytest.approx((4 + 5 + 2) / 14)


# -------------------------------------------------------------------------------- comfort with a history


def _comfortable(states, history=None):
    return history_comfort(states, np.zeros((0, 11)) if history is None else history)[0]


def test_comfort_windows_of_navsim_2():
    """Golden table G5, measured without a history."""
    for lateral, expected in ((5.0, 1.0), (9.0, 0.0)):
        states = np.zeros((1, 41, 11))
        states[0, 0, 6] = lateral
        assert _comfortable(states) == expected, lateral
    for accel, expected in ((2.39, 1.0), (2.40, 0.0)):
        states = np.zeros((1, 41, 11))
        states[..., 5] = accel
        assert _comfortable(states) == expected, accel
    for target, expected in ((8.0, 1.0), (8.5, 0.0)):
        states = states_of(straight_poses(target), ego_at_origin(5.0))
        assert _comfortable(states) == expected, target


def test_turning_counts_as_longitudinal_acceleration():
    """1.461 w^2 < 2.40 iff w < 1.2817; the yaw itself is left straight, so that only this can fail."""
    for rate, expected in ((1.28, 1.0), (1.285, 0.0)):
        states = np.zeros((1, 41, 11))
        states[..., 9] = rate
        assert _comfortable(states) == expected, rate
    states = np.zeros((1, 41, 11))
    states[..., 10] = 1.7  # 1.461 x 1.7 = 2.48
    assert _comfortable(states) == 0.0


def _turning_window(last_gap_us: int) -> SceneWindow:
    """Four frames at 5 m/s and 0.4 rad/s; the last gap says how long the history is."""
    frames = []
    stamps = TIMESTAMP_US + np.array([-1_500_000, -1_000_000, -500_000, -500_000 + last_gap_us])
    for stamp, nominal in zip(stamps, (-1.5, -1.0, -0.5, 0.0), strict=True):
        heading = 0.4 * nominal
        frames.append(
            Frame(
                token=str(stamp),
                timestamp_us=int(stamp),
                ego_pose=np.array([5 / 0.4 * np.sin(heading), 5 / 0.4 * (1 - np.cos(heading)), heading]),
                ego_velocity=np.array([5.0, 0.0]),
                ego_acceleration=np.zeros(2),
                driving_command=np.array([0, 1, 0, 0]),
                roadblock_ids=(),
                traffic_lights=(),
                annotations=None,
            )
        )
    return SceneWindow("toy", "toy", "toy", tuple(frames), 4, 0)


def test_the_gap_between_history_and_simulation_depends_on_microseconds():
    """1.500000 s of history give 14 states, up to -0.2 s, and a jump of 0.2 s that makes turning at 5 m/s and
    0.4 rad/s uncomfortable; 1.500040 s give 15 (pdm-scorer 4.10)."""
    heading = 0.4 * 0.5 * np.arange(1, 9)
    poses = np.stack([5 / 0.4 * np.sin(heading), 5 / 0.4 * (1 - np.cos(heading)), heading], axis=-1)
    states = states_of(poses, ego_at_origin(5.0))
    for gap, count, expected in ((500_000, 14, 0.0), (500_040, 15, 1.0)):
        history = history_states(_turning_window(gap))
        assert len(history) == count
        np.testing.assert_allclose(history[:, 2], 0.4 * (-1.5 + 0.1 * np.arange(count)), atol=1e-4)
        assert _comfortable(states, history) == expected


def test_history_needs_four_frames_in_order():
    window = _turning_window(500_000)
    with pytest.raises(SceneError, match="num_history_frames=4"):
        history_states(replace(window, frames=window.frames[1:], num_history_frames=3))
    with pytest.raises(SceneError, match="must increase"):
        history_states(_turning_window(-10))


# -------------------------------------------------------------------------------- the human-penalty filter

OFF_ROAD = straight_poses(5.0) + np.linspace(3.0, 6.0, 8)[:, None] * [0.0, 1.0, 0.0]


def test_what_the_driver_fails_is_forgiven_under_three_rules():
    areas = [road()[0], Area(strip(-20, 20), PolygonKind.LANE, True)]  # never off the route
    scene = make_scene(areas, human=OFF_ROAD)
    assert scene.human_zeros_log_replay.tolist() == [False, True, False, False, False, True]  # DAC and LK
    poses = np.stack([OFF_ROAD, straight_poses(5.0)])
    plain = score_v2(scene, poses, human_penalty_filter="false")
    assert plain.drivable_area_compliance.tolist() == [0.0, 1.0]
    assert plain.multiplicative_metrics_prod.tolist() == [0.0, 1.0]
    assert plain.lane_keeping.tolist() == [0.0, 1.0]

    fixed = score_v2(scene, poses, human_penalty_filter="true")
    assert fixed.drivable_area_compliance.tolist() == fixed.lane_keeping.tolist() == [1.0, 1.0]
    assert fixed.multiplicative_metrics_prod.tolist() == [1.0, 1.0]
    assert fixed.weighted_metrics[:, 2].tolist() == [1.0, 1.0]
    assert fixed.pdm_score.tolist() == plain.pdm_score.tolist()  # the interim score is never refreshed
    assert fixed.ego_progress.tolist() == plain.ego_progress.tolist()

    legacy = score_v2(scene, poses, human_penalty_filter="legacy")
    assert legacy.drivable_area_compliance.tolist() == [1.0, 1.0]
    assert legacy.multiplicative_metrics_prod.tolist() == [0.0, 1.0]
    assert legacy.weighted_metrics[:, 2].tolist() == [0.0, 1.0]


def test_half_a_fault_of_the_driver_forgives_nothing_and_second_stages_are_not_filtered():
    cone_ahead = [Track(lambda _t: (15.0, 0.0), length=0.5, width=0.5, is_agent=False, is_stopped=True)]
    scene = make_scene(tracks=cone_ahead)
    assert not scene.human_zeros_log_replay[0]  # NC of the driver is 0.5
    assert score_v2(scene, straight_poses(5.0)[None]).no_at_fault_collisions[0] == 0.5
    scene = make_scene(human=OFF_ROAD, is_synthetic=True)
    assert score_v2(scene, OFF_ROAD[None]).drivable_area_compliance[0] == 0.0


def _one_car_that_reacts(speed: float) -> ReactiveTraffic:
    """The first track, at x = 20 m on a lane along the x axis, with a target speed of 10 m/s."""
    return ReactiveTraffic(
        vehicle_track=np.arange(1),
        vehicle_poses=np.array([[20.0, 0.0, 0.0]]),
        vehicle_sizes=np.array([[4.0, 2.0]]),
        vehicle_speed=np.array([speed]),
        may_freeze=np.zeros(1, dtype=bool),
        agent_vehicle=np.arange(1),
        agent_poses=np.array([[20.0, 0.0, 0.0]]),
        agent_progress=np.array([70.0]),
        agent_target_speed=np.array([10.0]),
        path_xy=np.array([[-50.0, 0.0], [20.0, 0.0], [150.0, 0.0]]),
        path_heading=np.zeros(3),
        path_progress=np.array([0.0, 70.0, 200.0]),
        path_offsets=np.array([0, 3]),
    )


STANDING_CAR = [Track(lambda _t: (20.0, 0.0), length=4.0, width=2.0, is_stopped=True)]


def test_the_driver_is_forgiven_by_the_traffic_that_is_scored_in():
    """At 5 m/s into a car that stands in the record, and that, simulated, drives off as fast."""
    scene = make_scene(tracks=STANDING_CAR, traffic=_one_car_that_reacts(5.0), track_tokens=("car",))
    assert scene.human_zeros_log_replay[0]
    assert not reactive_human(scene).zeros.any()
    assert reactive_human(scene) is reactive_human(scene)
    poses = straight_poses(5.0)[None]
    assert score_v2(scene, poses).no_at_fault_collisions[0] == 1.0  # forgiven
    too_fast = straight_poses(12.0)[None]
    assert score_v2(scene, too_fast, traffic="reactive").no_at_fault_collisions[0] == 0.0
    off_road = make_scene(human=OFF_ROAD, tracks=STANDING_CAR, traffic=_one_car_that_reacts(5.0))
    assert reactive_human(off_road).zeros[1]
    assert score_v2(off_road, OFF_ROAD[None], traffic="reactive").drivable_area_compliance[0] == 1.0


def test_traffic_that_fails_for_the_driver_fails_for_everybody():
    scene = make_scene(tracks=STANDING_CAR, traffic=_one_car_that_reacts(np.nan), track_tokens=("car",))
    poses = straight_poses(1.0)[None]
    assert "no velocity" in reactive_human(scene).error
    for _ in range(2):
        with pytest.raises(TrafficError, match="'toy': the vehicle 'car' has no velocity"):
            score_v2(scene, poses, traffic="reactive")
    assert score_v2(scene, poses).no_at_fault_collisions[0] == 1.0
    second_stage = make_scene(
        is_synthetic=True, human=np.full((8, 3), np.nan), traffic=_one_car_that_reacts(5.0)
    )
    assert not reactive_human(second_stage).zeros.any()


# -------------------------------------------------------------------------------- borders


def test_rows_that_cannot_be_scored_are_named_and_cost_the_others_nothing():
    scene = make_scene()
    good, bad = straight_poses(5.0), straight_poses(5.0)
    bad[3, 1] = np.nan
    scores, states, errors = score_v2_rows(scene, [good, bad, good[:7], good])
    assert [error is None for error in errors] == [True, False, False, True]
    assert "y of pose 3 in row 1" in errors[1]
    assert np.isnan(scores.ego_progress).tolist() == [False, True, True, False]
    assert np.isnan(scores.weighted_metrics[1]).all()
    assert np.isfinite(states[[0, 3]]).all()
    assert np.isnan(states[[1, 2]]).all()
    alone = score_v2(scene, good[None])
    for name in alone.names():
        assert getattr(scores, name)[3] == getattr(alone, name)[0], name
    with pytest.raises(TrajectoryError, match="row 0"):
        score_v2(scene, bad[None])


def test_unknown_rules_are_refused():
    scene = make_scene()
    poses = straight_poses(5.0)[None]
    with pytest.raises(ValueError, match="traffic must be one of"):
        score_v2(scene, poses, traffic="idm")
    with pytest.raises(ValueError, match="human_penalty_filter must be one of"):
        score_v2(scene, poses, human_penalty_filter="yes")
    with pytest.raises(SceneError, match="without what reactive traffic needs"):
        score_v2(scene, poses, traffic="reactive")


def test_red_lights_of_a_scene_are_read_from_its_arrays():
    holes = shapely.box(10, -5, 30, 5).difference(shapely.box(15, -4, 25, 4))
    xy, rings, parts = polygon_arrays(np.array([holes], dtype=object))
    on = np.ones((41, 1), dtype=bool)
    lights = {
        "red_light_xy": xy,
        "red_light_ring_offsets": rings,
        "red_light_part_offsets": parts,
        "red_light_on": on,
        "red_light_ids": ("7",),
    }
    scene = make_scene(**lights)
    rules = {"human_penalty_filter": "false"}
    assert score_v2(scene, straight_poses(5.0)[None], **rules).traffic_light_compliance[0] == 0.0
    slow = make_scene(speed=0.5, **lights)  # the bumper ends at 2 + 4.049 m
    assert score_v2(slow, straight_poses(0.5)[None], **rules).traffic_light_compliance[0] == 1.0
