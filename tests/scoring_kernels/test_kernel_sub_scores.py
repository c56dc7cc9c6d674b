"""Sub-scores in the toy world: official numbers, hand-made cases, and loops that take no shortcuts."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from kernel_toy_world import (
    CENTERLINE,
    Area,
    Track,
    cone,
    drivable_polygons,
    ego_at_origin,
    moving_states,
    parked_car,
    road,
    score_alone,
    states_of,
    straight_poses,
    strip,
    surroundings,
    track_boxes,
    values,
)
from reference_scoring import areas_of, collisions, time_to_collision

from drivefine_agent.scoring.areas import ego_areas
from drivefine_agent.scoring.collisions import no_at_fault_collisions
from drivefine_agent.scoring.driving_direction import driving_direction_compliance
from drivefine_agent.scoring.footprint import footprint_points
from drivefine_agent.scoring.progress import project, raw_progress
from drivefine_agent.scoring.scorer import score_states
from drivefine_agent.scoring.time_to_collision import time_to_collision_within_bound
from drivefine_agent.scoring.types import PolygonKind

INF = np.inf
REAR_END = Track(lambda t: (-6.0 + 7.0 * t, 0.0))
LEADER = Track(lambda t: (12.0 + 5.0 * t, 0.0))
DRIFTER = Track(lambda t: (1.5 + 5.0 * t, -4.0 + t))
WIDE_ROAD = [
    Area(strip(-9, 9), PolygonKind.ROADBLOCK),
    Area(strip(-9, 0), PolygonKind.LANE, True),
    Area(strip(0, 9), PolygonKind.LANE, True),
]


# Golden table G4 of the official scorer (pdm-scorer 8); indices are those of the first violating state.
@pytest.mark.parametrize(
    ("areas", "tracks", "expected", "collision", "ttc"),
    [
        pytest.param(road(), [], (1, 1, 1), INF, INF, id="empty"),
        pytest.param(road(2.297), [], (1, 0, 1), INF, INF, id="corners on the boundary"),
        pytest.param(road(2.31), [], (1, 1, 1), INF, INF, id="just wide enough"),
        pytest.param(road(), [parked_car(15)], (0, 1, 0), 18, 9, id="parked car"),
        pytest.param(road(), [cone(15)], (0.5, 1, 0), 22, 13, id="cone"),
        pytest.param(road(), [REAR_END], (1, 1, 0), INF, 5, id="car from behind"),
        pytest.param(road(), [LEADER], (1, 1, 1), INF, INF, id="car ahead at the same speed"),
        pytest.param(road(), [DRIFTER], (1, 1, 0), INF, 10, id="car drifting in, ego in one lane"),
        pytest.param(WIDE_ROAD, [DRIFTER], (0, 1, 0), 19, 10, id="car drifting in, ego in two lanes"),
    ],
)
def test_golden_toy_world(areas, tracks, expected, collision, ttc):
    scores = score_alone(areas, tracks)
    assert values(scores) == expected
    assert scores.collision_index[0] == collision
    assert scores.time_to_collision_index[0] == ttc
    assert scores.progress_m[0] == pytest.approx(20.0, abs=1e-9)


def test_golden_toy_world_without_a_lane_on_the_route():
    """11 steps of 0.5 m are 5.5 m: half compliant."""
    scores = score_alone(road(on_route=False))
    assert values(scores) == (1, 1, 1)
    assert scores.driving_direction_compliance[0] == 0.5


def score_with(states, areas=None, tracks=(), ignored=None):
    return score_states(states, surroundings(areas, tracks), ignored)


def test_a_standing_ego_is_never_at_fault():
    """Hit by a car at x = -6 + 7 t; up to 0.05 m/s count as standing."""
    hit = [REAR_END, Track(lambda t: (20.0 - 7.0 * t, 0.0))]
    for speed, expected in ((0.0, 1.0), (0.05, 1.0), (0.0501, 0.0)):
        assert score_with(moving_states(speed), tracks=hit).no_at_fault_collisions[0] == expected


def test_a_track_that_stood_when_first_seen_counts_as_standing_for_good():
    """The drifting car again, flagged as stopped: at fault even from the side."""
    stood = Track(DRIFTER.position, is_stopped=True)
    assert score_alone(tracks=[stood]).no_at_fault_collisions[0] == 0.0
    assert score_alone(tracks=[stood]).collision_index[0] == 19


def test_the_first_contact_decides():
    """A car touches the ego's side for an instant, then stands in its way: never counted again.

    The ego stays inside its lane, so the contact from the side is not its fault.
    """

    def position(t):
        return (1.0 + 5.0 * t, -2.0) if t < 0.45 else (25.0, 0.0)

    assert score_alone(tracks=[Track(position)]).no_at_fault_collisions[0] == 1.0
    later = Track(lambda t: (1.0 + 5.0 * t, -20.0) if t < 0.45 else (25.0, 0.0))
    assert score_alone(tracks=[later]).no_at_fault_collisions[0] == 0.0


def test_an_overlap_at_the_start_counts_for_a_moving_ego():
    on_top = Track(lambda _t: (3.5, 0.0))
    scores = score_alone(tracks=[on_top])
    assert scores.no_at_fault_collisions[0] == 0.0
    assert scores.collision_index[0] == 0


def test_ignored_tracks_count_nowhere():
    states = states_of(straight_poses(), ego_at_origin())
    scores = score_with(states, tracks=[parked_car(15), cone(30)], ignored=np.array([True, False]))
    assert values(scores) == (1, 1, 1)
    scores = score_with(states, tracks=[parked_car(15), cone(15)], ignored=np.array([True, False]))
    assert values(scores) == (0.5, 1, 0)


def test_an_agent_and_a_cone_give_the_lower_value():
    assert score_alone(tracks=[cone(15), parked_car(16)]).no_at_fault_collisions[0] == 0.0


def test_absent_tracks_are_not_hit():
    """The parked car exists only from sample 19 on, one too late for index 18; at 19 it is hit."""
    late = Track(lambda _t: (15.0, 0.0), is_stopped=True, exists=lambda t: t >= 19)
    assert score_alone(tracks=[late]).collision_index[0] == 19
    gone = Track(lambda _t: (15.0, 0.0), is_stopped=True, exists=lambda t: t < 18)
    assert values(score_alone(tracks=[gone])) == (1, 1, 1)  # 0.9 s ahead of state 9 it is gone as well
    there = Track(lambda _t: (15.0, 0.0), is_stopped=True, exists=lambda t: t == 18)
    assert values(score_alone(tracks=[there])) == (0, 1, 0)


def test_leaving_the_road_at_the_start_counts():
    """Only state 0 is off the road, by its rear corners."""
    areas = [Area(strip(-3, 3, -1.0, 100), PolygonKind.ROADBLOCK)]
    assert score_with(moving_states(5.0), areas).drivable_area_compliance[0] == 0.0
    assert score_with(moving_states(5.0, x=0.2), areas).drivable_area_compliance[0] == 1.0


@pytest.mark.parametrize(
    ("speed", "expected"), [(1.81, 1.0), (1.82, 0.5), (5.45, 0.5), (5.5, 0.0), (5.46, 0.0), (5.454, 0.5)]
)
def test_driving_direction_sums_eleven_steps(speed, expected):
    """1.1 s at 1.8181... m/s are 2 m, at 5.4545... m/s 6 m."""
    center = footprint_points(moving_states(speed))[:, :, 4]
    assert driving_direction_compliance(center, np.ones((1, 41), dtype=bool))[0] == expected


def test_only_off_route_steps_count_for_the_driving_direction():
    center = footprint_points(moving_states(10.0))[:, :, 4]
    off_route = np.zeros((1, 41), dtype=bool)
    off_route[0, [3, 20]] = True  # 1 m each, in different windows
    assert driving_direction_compliance(center, off_route)[0] == 1.0
    off_route[0, [14, 15, 16, 17, 18]] = True  # 1 m each, and with sample 20 in one window
    assert driving_direction_compliance(center, off_route)[0] == 0.5


def test_driving_against_traffic_on_a_route_lane_is_compliant():
    states = moving_states(8.0, heading=np.pi, x=60.0)
    assert score_with(states).driving_direction_compliance[0] == 1.0


def test_off_route_inside_an_intersection_still_counts_here():
    """NAVSIM 2 exempts intersections, NAVSIM 1.1 does not."""
    crossing = [*road(on_route=False), Area(strip(-9, 9), PolygonKind.INTERSECTION)]
    assert score_alone(crossing).driving_direction_compliance[0] == 0.5


def test_a_car_ahead_at_the_same_speed_keeps_its_distance():
    assert score_alone(tracks=[LEADER]).time_to_collision_within_bound[0] == 1.0


def test_an_object_exactly_along_the_heading_may_be_neither_ahead_nor_behind():
    """Where the dot product rounds above 1, the angle is undefined and the object is passed over."""
    undefined = defined = None
    for heading in np.random.default_rng(0).uniform(-3, 3, 400):
        along = np.array([np.cos(heading), np.sin(heading)])
        states = np.zeros((1, 41, 11))
        states[0, :, 2], states[0, :, 3] = heading, 5.0  # speed without motion: one geometry at all times
        x, y = 8.0 * along
        unit = np.array([x, y]) / np.sqrt(x * x + y * y)
        if along[0] * unit[0] + along[1] * unit[1] > 1.0:
            undefined = (states, x, y)
        else:
            defined = (states, x, y)
    big_road = [Area(strip(-99, 99, -99, 99), PolygonKind.ROADBLOCK)]
    for (states, x, y), expected in ((undefined, 1.0), (defined, 0.0)):
        track = Track(lambda _t, x=x, y=y: (x, y), length=2.0, width=2.0, heading=states[0, 0, 2])
        assert score_with(states, big_road, [track]).time_to_collision_within_bound[0] == expected


def test_late_states_look_beyond_the_horizon():
    """A car is in the way only from 4.2 s on: only states from t = 33 (+ 9 samples) meet it."""
    states = moving_states(5.0)
    late = Track(lambda _t: (26.0, 0.0), is_stopped=True, exists=lambda t: t >= 42)
    scores = score_with(states, tracks=[late])
    assert scores.no_at_fault_collisions[0] == 1.0
    assert scores.time_to_collision_within_bound[0] == 0.0
    assert scores.time_to_collision_index[0] >= 33


@pytest.mark.parametrize(("speed", "expected"), [(-1.0, 0.0), (-0.004, 1.0), (-0.006, 1.0)])
def test_a_reversing_ego_is_projected_forwards(speed, expected):
    """A wall one metre before the bumper while rolling back: the look-ahead takes the speed without its sign.

    0.9 s at 1 m/s do not span 1 m, so the wall stands 0.8 m away; at 4 mm/s the state is skipped.
    """
    states = np.zeros((1, 41, 11))
    states[0, :, 3] = speed
    wall = Track(lambda _t: (4.049 + 0.8 + 0.5, 0.0), length=1.0, width=3.0, is_agent=False, is_stopped=True)
    assert score_with(states, tracks=[wall]).time_to_collision_within_bound[0] == expected


def test_slow_states_are_skipped_by_time_to_collision():
    """A wall touches the bumper all the time; 0.005 m/s is enough to be asked, less is not."""
    wall = Track(lambda _t: (4.049 + 0.5, 0.0), length=1.0, width=3.0, is_agent=False, is_stopped=True)
    for speed, expected in ((0.004, 1.0), (0.005, 0.0), (-0.005, 0.0)):
        states = np.zeros((1, 41, 11))
        states[0, :, 3] = speed
        assert score_with(states, tracks=[wall]).time_to_collision_within_bound[0] == expected


def test_beside_counts_when_the_rear_axle_is_in_an_intersection():
    """A car rubs along the ego's side, 67 degrees off its heading; the ego is inside its lane."""
    car = Track(lambda t: (1.0 + 5.0 * t, -2.4), width=2.6)
    alone = score_with(moving_states(5.0), road(), [car])
    assert values(alone) == (1, 1, 1)
    crossing = [*road(), Area(strip(-9, 9), PolygonKind.INTERSECTION)]
    assert values(score_with(moving_states(5.0), crossing, [car])) == (1, 1, 0)


def test_too_few_track_samples_are_refused():
    around = surroundings(tracks=[parked_car(15)])
    short = around.tracks.exists[:49]
    tracks = type(around.tracks)(
        around.tracks.corners[:49], around.tracks.center[:49], short, np.ones(1, bool), np.ones(1, bool)
    )
    with pytest.raises(ValueError, match=r"at least 50 samples of 0\.1 s, got 49"):
        score_states(moving_states(5.0), type(around)(around.polygons, tracks, around.centerline))


def test_projection_on_the_centreline_equals_geos():
    rng = np.random.default_rng(0)
    line = np.add(np.cumsum(rng.normal(1.0, 1.0, (120, 2)), axis=0), (585_000.0, 4_475_000.0))
    line[40] = line[39]  # junction vertices are doubled
    points = line[rng.integers(120, size=300)] + rng.normal(0.0, 4.0, (300, 2))
    points[0], points[1] = line[40], line[-1] + 50.0
    expected = shapely.line_locate_point(shapely.LineString(line), shapely.points(points))
    np.testing.assert_allclose(project(points, line), expected, atol=1e-9)


def test_progress_is_the_way_along_the_centreline_and_never_negative():
    center = np.zeros((2, 41, 2))
    center[0, :, 0] = np.linspace(1.0, 31.0, 41)
    center[0, -1, 1] = 7.0  # sideways does not matter
    center[1, :, 0] = np.linspace(31.0, 1.0, 41)
    np.testing.assert_allclose(raw_progress(center, CENTERLINE), [30.0, 0.0])


def random_world(rng: np.random.Generator):
    """Two proposals among a dozen tracks on a road of three lanes, one of them an intersection."""
    areas = [
        Area(strip(-6.0, 6.0), PolygonKind.ROADBLOCK),
        Area(strip(-6.0, -2.0), PolygonKind.LANE, True),
        Area(strip(-2.0, 2.0), PolygonKind.LANE, True),
        Area(strip(2.0, 6.0), PolygonKind.LANE_CONNECTOR, False),
        Area(strip(-8.0, 8.0, 20.0, 35.0), PolygonKind.INTERSECTION),
    ]
    tracks = []
    for _ in range(12):
        start = rng.uniform((-15.0, -7.0), (45.0, 7.0))
        speed, heading = rng.choice([0.0, 3.0, 8.0]), rng.uniform(-np.pi, np.pi)
        velocity = speed * np.array([np.cos(heading), np.sin(heading)])
        is_agent = bool(rng.random() < 0.8)
        first, last = sorted(rng.integers(-20, 71, 2))
        tracks.append(
            Track(
                lambda t, s=start, v=velocity: tuple(s + t * v),
                length=rng.uniform(0.4, 6.0),
                width=rng.uniform(0.4, 2.5),
                is_agent=is_agent,
                is_stopped=not is_agent or speed == 0.0,
                heading=heading,
                exists=lambda t, a=first, b=last: a <= t <= b,
            )
        )
    poses = np.zeros((2, 8, 3))
    poses[..., 0] = rng.uniform(0.0, 9.0, (2, 1)) * 0.5 * np.arange(1, 9)
    poses[..., 1] = rng.normal(0.0, 0.5, (2, 1)) * np.arange(1, 9)
    poses[..., 2] = rng.normal(0.0, 0.1, (2, 1))
    return areas, tracks, states_of(poses, ego_at_origin(float(rng.uniform(0.0, 9.0))))


@pytest.mark.parametrize("seed", range(40))
def test_scores_equal_loops_without_shortcuts(seed):
    """240 random drives: ignore lists in time order give the same as the first contact alone."""
    areas, tracks, states = random_world(np.random.default_rng(seed))
    boxes = track_boxes(tracks)
    points = footprint_points(states)
    flags = ego_areas(points, states[..., :2], drivable_polygons(areas))
    nc, nc_index = no_at_fault_collisions(states, points, flags, boxes)
    ttc, ttc_index = time_to_collision_within_bound(states, points, flags, boxes)
    for p in range(2):
        assert collisions(states[p], areas, boxes) == (nc[p], nc_index[p])
        assert time_to_collision(states[p], areas, boxes) == (ttc[p], ttc_index[p])
        off_road = any(areas_of(state, areas)[0] for state in states[p])
        assert flags.non_drivable[p].any() == off_road
