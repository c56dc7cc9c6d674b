"""Reactive traffic: a toy road with numbers worked out by hand, and the official program's vehicles."""

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from drivefine_agent.constants import TRACK_TYPES
from drivefine_agent.data.map_writer import Area, Lane, LaneConnector, MapLayers, Roadblock, write_map
from drivefine_agent.data.map_writer import RoadblockConnector as BlockConnector
from drivefine_agent.data.maps import Map, load_map, read_map
from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.splits import load_split
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import SceneError, TrafficError
from drivefine_agent.geometry.indices import StateIndex
from drivefine_agent.scoring.build import initial_state
from drivefine_agent.scoring.contacts import TrackBoxes
from drivefine_agent.scoring.observation import (
    FrameTracks,
    frame_tracks,
    resample_tracks,
    track_polygons,
)
from drivefine_agent.scoring.reactive_occupancy import Occupancy, widened
from drivefine_agent.scoring.reactive_paths import inner_distance, is_beside
from drivefine_agent.scoring.reactive_scene import build_reactive_traffic
from drivefine_agent.scoring.reactive_traffic import idm_acceleration, roll_out, simulate_vehicles
from drivefine_agent.scoring.trajectory import rear_axle_round_trip
from drivefine_agent.scoring.types import ReactiveTraffic, ScoringSceneV2

ORIGIN = np.array([365_000.0, 143_000.0])  # somewhere in the zone of sg-one-north
FAR_AWAY = (60.0, 60.0)  # an ego that nobody meets
NUM_SAMPLES = 41
NO_TRACKS = FrameTracks((), np.zeros(0, dtype=np.int64), *(np.zeros((0, n)) for n in (3, 2, 2)))


# --- a toy map: parallel lanes along x, each its own roadblock ------------------------------------------


def area(x_low: float, y_low: float, x_high: float, y_high: float) -> shapely.Polygon:
    return shapely.transform(shapely.box(x_low, y_low, x_high, y_high), lambda xy: xy + ORIGIN)


def lane(
    fid: int, y: float, *, xs: Sequence[float] = range(201), limit: float | None = None, width: float = 3.5
) -> Lane:
    """A lane along x with a baseline vertex at each of `xs`, driven in the order of `xs`."""
    line = np.stack([np.asarray(xs, dtype=float), np.full(len(xs), y)], axis=-1) + ORIGIN
    return Lane(
        fid, area(min(xs), y - width / 2, max(xs), y + width / 2), line, 1000 + fid, 0, speed_limit_mps=limit
    )


def city(path: Path, lanes: Sequence[Lane], **layers: Sequence[object]) -> Map:
    roadblocks = [Roadblock(item.roadblock_fid, item.polygon) for item in lanes]
    write_map(path / "map.gpkg", "sg-one-north", MapLayers(lanes=lanes, roadblocks=roadblocks, **layers))  # type: ignore[arg-type]
    return read_map(path / "map.gpkg", "sg-one-north")


def cars(*rows: tuple[float, float, float], heading: float = 0.0, tokens: Sequence[str] = ()) -> FrameTracks:
    """Cars of 4 m x 2 m at (x, y) with a speed along x."""
    table = np.array(rows, dtype=float).reshape(-1, 3)
    poses = np.column_stack([table[:, :2] + ORIGIN, np.full(len(table), heading)])
    return FrameTracks(
        tuple(tokens) or tuple(f"car{i}" for i in range(len(table))),
        np.zeros(len(table), dtype=np.int64),
        poses,
        np.tile([4.0, 2.0], (len(table), 1)),
        np.stack([table[:, 2], np.zeros(len(table))], axis=-1),
    )


def ego(x: float, y: float, speed: float = 0.0) -> NDArray[np.float64]:
    """(41, 11) an ego that drives along x; (x, y) is its rear axle at t = 0."""
    states = np.zeros((NUM_SAMPLES, len(StateIndex)))
    states[:, StateIndex.X] = ORIGIN[0] + x + speed * 0.1 * np.arange(NUM_SAMPLES)
    states[:, StateIndex.Y] = ORIGIN[1] + y
    states[:, StateIndex.VX] = speed
    return states


def scene(
    tracks: Sequence[FrameTracks], state: NDArray[np.float64], traffic: ReactiveTraffic | None
) -> ScoringSceneV2:
    """What the roll-out needs of a scene, from the road users of 9 frames."""
    sampled = resample_tracks([*tracks, *[NO_TRACKS] * (11 - len(tracks))])  # nobody is seen after frame 8
    poses, exists = sampled.poses[:NUM_SAMPLES], sampled.exists[:NUM_SAMPLES]
    corners, centers = track_polygons(poses, sampled.sizes, exists)
    nothing = np.zeros(0)
    return ScoringSceneV2(
        token="scene",
        log_name="log",
        map_name="sg-one-north",
        timestamp_us=0,
        initial_state=state,
        human_poses=nothing,
        reference_poses=nothing,
        reference_states=nothing,
        reference_progress=0.0,
        reference_multiplier=1.0,
        centerline=nothing,
        polygon_xy=nothing,
        polygon_ring_offsets=nothing.astype(np.int64),
        polygon_part_offsets=nothing.astype(np.int64),
        polygon_kind=nothing.astype(np.int64),
        polygon_on_route=nothing.astype(bool),
        track_corners=corners,
        track_center=centers,
        track_exists=exists,
        track_is_agent=sampled.is_agent,
        track_is_stopped=sampled.is_stopped,
        track_type=sampled.types,
        track_tokens=sampled.tokens,
        track_poses=poses,
        track_sizes=sampled.sizes,
        exists_in_frame=np.arange(len(sampled.tokens)) < len(tracks[0].tokens),
        traffic=traffic,
    )


def drive(map_: Map, frame: FrameTracks, states: NDArray[np.float64]) -> TrackBoxes:
    traffic = build_reactive_traffic(map_, frame, states[0])
    return roll_out(scene([frame], states[0], traffic), states)


def along(boxes: TrackBoxes, car: int = 0) -> NDArray[np.float64]:
    """(41,) x of a car's centre on the toy map."""
    return np.asarray(boxes.center[:, car, 0] - ORIGIN[0])


# --- the driver model ------------------------------------------------------------------------------------


def test_idm_step_by_hand() -> None:
    """v = 5, target 10, lead at 3 m/s, gap 20: s* = 1 + 7.5 + 5 * 2 / (2 sqrt 2) = 12.0355339."""
    assert idm_acceleration(5.0, 10.0, 3.0, 20.0) == pytest.approx(1 - 0.0625 - 0.3621352, abs=1e-6)
    assert idm_acceleration(0.0, 10.0, 0.0, 1e6) == pytest.approx(1.0)
    assert idm_acceleration(0.0, 10.0, 0.0, 0.5) == 0.0  # the gap counts as at least 1 m: 1 - (1 / 1)^2
    assert idm_acceleration(30.0, 10.0, 0.0, 5.0) == -2.0


def test_a_car_brakes_for_the_end_of_its_lane_and_stays_on_it(tmp_path: Path) -> None:
    """At 8 m/s, 15 m before the end of its path (x = 199: the last vertex, at 200, is dropped)."""
    x = along(drive(city(tmp_path, [lane(1, 0.0)]), cars((184, 0, 8)), ego(120, 60)))
    np.testing.assert_allclose(x[:4] - 184, [0, 0.8, 1.58, 2.34], atol=1e-6)  # 8.0, 7.8, 7.6 m/s
    assert (np.diff(x) >= 0).all()
    assert x[-1] <= 199 + 1e-6


def test_parked_off_the_lanes_stays_and_moving_off_the_lanes_vanishes(tmp_path: Path) -> None:
    boxes = drive(city(tmp_path, [lane(1, 0.0)]), cars((50, 20, 0.05), (80, 20, 3)), ego(*FAR_AWAY))
    assert boxes.exists[:, 0].all()
    np.testing.assert_allclose(along(boxes), 50, atol=1e-9)
    assert boxes.exists[:, 1].tolist() == [True] + [False] * 40


def test_a_parked_car_gives_way_to_one_that_is_simulated(tmp_path: Path) -> None:
    """A parked car half a metre beside the lane is touched by none; one that leans into a car's way goes."""
    map_ = city(tmp_path, [lane(1, 0.0, width=2.0)])  # cars are as wide as the lane
    boxes = drive(map_, cars((30, 0, 10), (50, 1.9, 0), (50, -2.2, 0)), ego(*FAR_AWAY))
    x = along(boxes)
    touching = np.abs(x - 50) <= 4
    touching[0] = False
    assert touching.any()
    assert boxes.exists[:, 1].tolist() == (~touching).tolist()
    assert boxes.exists[:, 2].all()


def test_of_two_parked_cars_that_overlap_the_first_stays(tmp_path: Path) -> None:
    boxes = drive(city(tmp_path, [lane(1, 0.0)]), cars((50, 20, 0), (51, 20, 0)), ego(*FAR_AWAY))
    assert boxes.exists[:, 0].all()
    assert boxes.exists[:, 1].tolist() == [True] + [False] * 40


# --- which cars are simulated ----------------------------------------------------------------------------


def test_cars_within_3_m_of_the_baseline_are_snapped_and_others_stay_where_they_are(tmp_path: Path) -> None:
    map_ = city(tmp_path, [lane(1, 0.0, width=12.0)])
    boxes = drive(map_, cars((20, 2.9, 5), (120, 3.1, 5)), ego(*FAR_AWAY))
    assert boxes.exists.all()
    np.testing.assert_allclose(boxes.center[0, 0] - ORIGIN, [20, 2.9], atol=1e-6)
    np.testing.assert_allclose(boxes.center[1:, 0, 1] - ORIGIN[1], 0, atol=1e-6)
    np.testing.assert_allclose(boxes.center[:, 1] - ORIGIN, [[120, 3.1]] * 41, atol=1e-6)  # though it moves


def test_a_car_that_touches_the_ego_at_the_start_is_there_in_sample_0_only(tmp_path: Path) -> None:
    """The ego's rear axle is at 50: its box reaches from 48.873 to 54.049; a car's, 2 m to both sides."""
    map_ = city(tmp_path, [lane(1, 0.0)])
    assert drive(map_, cars((56.0, 0, 5)), ego(50, 0)).exists[:, 0].tolist() == [True] + [False] * 40
    assert drive(map_, cars((56.1, 0, 5)), ego(50, 0)).exists[:, 0].all()
    assert drive(map_, cars((46.8, 0, 0)), ego(50, 0)).exists[:, 0].all()
    assert drive(map_, cars((46.9, 0, 0)), ego(50, 0)).exists[:, 0].tolist() == [True] + [False] * 40


def test_without_a_limit_the_last_used_target_speed_counts(tmp_path: Path) -> None:
    map_ = city(tmp_path, [lane(1, 0.0), lane(2, 10.0, limit=5.0), lane(3, 20.0), lane(4, 30.0, limit=0.0)])
    frame = cars((20, 0, 1), (20, 10, 1), (20, 20, 1), (80, 0, 1), (20, 30, 1))
    traffic = build_reactive_traffic(map_, frame, ego(*FAR_AWAY)[0])
    assert traffic.agent_vehicle.tolist() == [0, 1, 2, 3, 4]
    assert traffic.agent_target_speed.tolist() == [10, 5, 5, 5, 5]


def test_the_lane_is_chosen_by_an_unwrapped_difference_of_headings(tmp_path: Path) -> None:
    """Two lanes on top of each other, one at 0 and one at pi; the car heads for -3.1 rad."""
    map_ = city(tmp_path, [lane(1, 0.0), lane(2, 0.0, xs=range(200, -1, -1))])
    frame = cars((100, 0, 5), heading=-3.1)
    traffic = build_reactive_traffic(map_, frame, ego(*FAR_AWAY)[0])
    assert traffic.agent_poses[0, 2] == pytest.approx(0.0, abs=1e-6)  # 3.1 away; pi would be 6.24


def test_connectors_count_only_within_an_intersection(tmp_path: Path) -> None:
    lanes = [lane(1, 0.0, xs=range(51)), lane(2, 0.0, xs=range(100, 151))]
    middle = lane(3, 0.0, xs=range(50, 101))
    block = BlockConnector(20, middle.polygon, 1001, 1002, 30)
    connector = LaneConnector(3, middle.polygon, middle.baseline, 20, 1, 2, 30, speed_limit_mps=7.0)
    layers = {"lane_connectors": [connector], "roadblock_connectors": [block]}
    map_ = city(tmp_path, lanes, intersections=[Area(30, area(50, -5, 75, 5))], **layers)
    traffic = build_reactive_traffic(map_, cars((60, 0, 5), (90, 0, 5)), ego(*FAR_AWAY)[0])
    assert traffic.agent_vehicle.tolist() == [0]
    assert traffic.agent_target_speed.tolist() == [7]
    assert traffic.path_xy[:, 0] - ORIGIN[0] == pytest.approx(np.arange(50, 100), abs=1e-6)


# --- who brakes for whom ---------------------------------------------------------------------------------


def test_later_cars_see_earlier_ones_where_they_are_by_now(tmp_path: Path) -> None:
    """Rear car at 20, front car at 40, both 4 m/s, target 10. After 0.2 s the rear is at 20.8 + 0.01 a.

    Front first: it is at 40.4 with v = 4 + 0.1 (1 - 0.4^4 - (12.6568542 / 157)^2) = 4.0967901; the rear one
    has a gap of 38.4 - 22 = 16.4 and s* = 7 + 4 (4 - 4.0967901) / 2.8284271 = 6.8631182, so a = 0.7992737.
    Rear first: gap 16, s* = 7, a = 0.7829938.
    """
    map_ = city(tmp_path, [lane(1, 0.0)])
    front_first = drive(map_, cars((40, 0, 4), (20, 0, 4)), ego(*FAR_AWAY))
    rear_first = drive(map_, cars((20, 0, 4), (40, 0, 4)), ego(*FAR_AWAY))
    assert along(front_first, 1)[2] == pytest.approx(20.8 + 0.007992737, abs=1e-6)
    assert along(rear_first, 0)[2] == pytest.approx(20.8 + 0.007829938, abs=1e-6)


def test_the_ego_counts_1461_mm_too_far_behind(tmp_path: Path) -> None:
    """Ego at rest, rear axle at 40, half length 2.588: the gap is 37.412 - 22 and not 38.873 - 22."""
    x = along(drive(city(tmp_path, [lane(1, 0.0)]), cars((20, 0, 4)), ego(40, 0)))
    wanted_gap = 1 + 1.5 * 4 + 4 * 4 / (2 * math.sqrt(2))
    acceleration = 1 - 0.4**4 - (wanted_gap / 15.412) ** 2
    assert x[2] == pytest.approx(20.8 + 0.01 * acceleration, abs=1e-6)


def test_the_ego_of_the_step_before_is_seen(tmp_path: Path) -> None:
    """The ego jumps into the lane at sample 1; the car reacts to it in the step to sample 2."""
    map_ = city(tmp_path, [lane(1, 0.0)])
    states = ego(40, 60)
    states[1:] = ego(40, 0)[1:]
    alone = along(drive(map_, cars((20, 0, 4)), ego(40, 60)))
    x = along(drive(map_, cars((20, 0, 4)), states))
    np.testing.assert_allclose(x[:3], alone[:3], rtol=0, atol=1e-9)  # speed of step 2 shows in sample 3
    assert x[3] < alone[3] - 1e-3


def test_cars_beyond_100_m_of_the_ego_vanish(tmp_path: Path) -> None:
    boxes = drive(city(tmp_path, [lane(1, 0.0)]), cars((85, 0, 0), (101, 0, 0)), ego(0, 0))
    assert boxes.exists[:, 0].all()
    assert boxes.exists[:, 1].tolist() == [True] + [False] * 40


# --- what fails officially fails here --------------------------------------------------------------------


def test_a_corridor_that_misses_its_own_car_fails(tmp_path: Path) -> None:
    """The path ends at x = 20, since the lane's last vertex is at 60; the car is at 50."""
    map_ = city(tmp_path, [lane(1, 0.0, xs=[*range(21), 60])])
    assert drive(map_, cars((15, 0, 1)), ego(*FAR_AWAY)).exists.all()
    with pytest.raises(TrafficError, match="'car0' does not touch its box"):
        drive(map_, cars((50, 0, 1)), ego(0, 30))


def test_a_lane_of_two_vertices_fails(tmp_path: Path) -> None:
    with pytest.raises(TrafficError, match="two vertices"):
        drive(city(tmp_path, [lane(1, 0.0, xs=[0, 100])]), cars((50, 0, 1)), ego(*FAR_AWAY))


def test_a_simulated_car_without_velocity_fails_and_another_does_not(tmp_path: Path) -> None:
    map_ = city(tmp_path, [lane(1, 0.0)])
    with pytest.raises(TrafficError, match="no velocity"):
        drive(map_, cars((50, 0, np.nan)), ego(*FAR_AWAY))
    assert drive(map_, cars((50, 20, np.nan)), ego(*FAR_AWAY)).exists[:, 0].sum() == 1


def test_a_token_within_the_own_token_goes_unseen(tmp_path: Path) -> None:
    map_ = city(tmp_path, [lane(1, 0.0)])
    states = ego(*FAR_AWAY)
    with pytest.raises(TrafficError, match="'12' goes unseen"):
        drive(map_, cars((20, 0, 4), (40, 0, 4), tokens=["12", "1"]), states)
    seen = along(drive(map_, cars((20, 0, 4), (40, 0, 4), (60, 0, 4), tokens=["12", "1", "3"]), states))
    gap, wanted_gap = 58 - 22, 1 + 1.5 * 4  # to the third car
    acceleration = 1 - 0.4**4 - (wanted_gap / gap) ** 2
    assert seen[2] == pytest.approx(20.8 + 0.01 * acceleration, abs=1e-6)


def test_a_scene_without_traffic_is_refused() -> None:
    with pytest.raises(SceneError, match="no reactive traffic"):
        roll_out(scene([cars((0, 0, 1))], ego(0, 0)[0], None), ego(0, 0))


# --- the other road users --------------------------------------------------------------------------------


def test_others_move_as_recorded_and_late_vehicles_never_appear(tmp_path: Path) -> None:
    """Frame 0: a car and a pedestrian. Frame 2: both gone on, a cone and another car."""
    map_ = city(tmp_path, [lane(1, 0.0)])
    kinds = np.array([TRACK_TYPES.index(name) for name in ("vehicle", "pedestrian")])
    first, second = cars((20, 0, 4), (30, 8, 1)), cars((24, 0, 4), (31, 8, 1), (90, 0, 4), (10, 8, 0))
    late_kinds = np.array([*kinds, 0, TRACK_TYPES.index("traffic_cone")])
    frames = [
        FrameTracks(first.tokens, kinds, first.poses, first.sizes, first.velocities),
        NO_TRACKS,
        FrameTracks(second.tokens, late_kinds, second.poses, second.sizes, second.velocities),
    ]
    states = ego(*FAR_AWAY)
    traffic = build_reactive_traffic(map_, frames[0], states[0])
    boxes = roll_out(scene(frames, states[0], traffic), states)
    assert boxes.exists[:, 0].all()  # the log has it up to 1 s only
    assert boxes.exists[:, 1].tolist() == [True] * 11 + [False] * 30
    assert boxes.center[5, 1] - ORIGIN == pytest.approx([30.5, 8])
    assert not boxes.exists[:, 2].any()
    assert boxes.exists[:, 3].tolist() == [False] + [True] * 40  # seen once: there at all later samples
    assert boxes.is_stopped.tolist() == [False, False, False, True]


def test_a_pedestrian_under_the_ego_is_kept(tmp_path: Path) -> None:
    """Unlike non-reactive traffic, which removes what overlaps the ego at the start."""
    frame = cars((50, 0, 1))
    frame = FrameTracks(
        frame.tokens, np.array([TRACK_TYPES.index("pedestrian")]), frame.poses, frame.sizes, frame.velocities
    )
    assert drive(city(tmp_path, [lane(1, 0.0)]), frame, ego(50, 0)).exists.all()


# --- the official program --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def windows(navsim_mini: Path) -> dict[str, SceneWindow]:
    split = load_split("synth_one_stage", [navsim_mini / "splits"])
    found = load_scenes(navsim_mini / "navsim_logs" / split.data_split, split.scene_filter)
    return {window.token: window for window in found}


def test_vehicles_are_where_the_official_policy_has_them(
    navsim_mini: Path, goldens: Path, windows: dict[str, SceneWindow]
) -> None:
    with gzip.open(goldens / "simulated_states.json.gz") as file:
        rows = json.load(file)["v22"]
    states = {(row["token"], row["trajectory_id"]): np.array(row["states"]) for row in rows}
    with gzip.open(goldens / "reactive_vehicles_v22.json.gz") as file:
        official = json.load(file)
    assert len(official) == 8
    worst = 0.0
    num_vanishing = 0
    for row in official:
        window = windows[row["token"]]
        frames = [window.frame_at(i) for i in range(9)]
        tracks = [frame_tracks(frame, rear_axle_round_trip(frame.ego_pose)) for frame in frames]
        state = initial_state(window.current)
        map_ = load_map(navsim_mini / "maps", window.map_name)
        prepared = scene(tracks, state, build_reactive_traffic(map_, tracks[0], state))
        boxes = roll_out(prepared, states[row["token"], row["trajectory_id"]])

        columns = [prepared.track_tokens.index(token) for token in row["vehicles"]]
        exists = np.array(row["exists"], dtype=bool)
        np.testing.assert_array_equal(boxes.exists[:, columns], exists)
        others = np.setdiff1d(np.flatnonzero(prepared.track_type == 0), columns)
        assert not boxes.exists[:, others].any()
        expected = np.array(row["poses"])
        there = exists[row["samples"]]
        corners = boxes.corners[row["samples"]][:, columns][there]
        forward = corners[:, 0] - corners[:, 1]
        heading = np.arctan2(forward[:, 1], forward[:, 0]) - expected[there][:, 2]
        centers = boxes.center[row["samples"]][:, columns][there]
        worst = max(worst, np.abs(centers - expected[there][:, :2]).max(), np.abs(np.sin(heading / 2)).max())
        num_vanishing += int((~exists[-1]).sum())
    assert worst < 1e-6
    assert num_vanishing == 3  # one of the scenes has vehicles that the ego leaves more than 100 m behind


# --- ways around making geometries -------------------------------------------------------------------------


def test_short_cuts_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense queues on two lanes: lines that rule out, and geometries kept, against every geometry made."""
    map_ = city(tmp_path, [lane(1, 0.0), lane(2, 3.0)])
    rows = [(6.0 * i + 3 * j, 3.0 * j, float((5 * i + j) % 9)) for i in range(1, 20) for j in range(2)]
    drives = [ego(20, y, speed) for y, speed in ((0, 6), (1.4, 3), (3, 0), (60, 0))]
    traffic = build_reactive_traffic(map_, cars(*rows), ego(20, 60)[0])
    assert len(traffic.agent_vehicle) > 30
    kept: dict[tuple[int, bytes], tuple[tuple[object, ...], bool]] = {}
    quick = [simulate_vehicles(traffic, (), states, kept) for states in drives]
    assert kept
    monkeypatch.setattr(
        Occupancy, "_without_distant", lambda self, agent, line, width, near: (near, frozenset(), math.inf)
    )
    plain = [simulate_vehicles(traffic, (), states) for states in drives]
    for (poses, exists), (plain_poses, plain_exists) in zip(quick, plain, strict=True):
        np.testing.assert_array_equal(poses, plain_poses)
        np.testing.assert_array_equal(exists, plain_exists)
    assert not np.array_equal(plain[0][0], plain[3][0])  # the ego is seen


def test_distances_of_lines_are_those_of_shapely() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        first, second = rng.normal(size=(2, 5, 2)) * 5
        parts = [shapely.linestrings(part) for line in (first, second) for part in (line[:2], line[2:])]
        expected = min(shapely.distance(a, b) for a in parts[:2] for b in parts[2:])
        assert inner_distance(first, second) == pytest.approx(expected, abs=1e-12)
        middle = shapely.Point(second[:2].mean(axis=0))
        rectangles = shapely.union_all([widened(first[i : i + 2], 2.0) for i in range(4)])
        assert is_beside(first, 2.0, second) == bool(rectangles.contains(middle))
