"""Traffic and the expert: nobody drives through anybody, red means stop, motion is smooth and consistent."""

import numpy as np
import pytest
import shapely
from worlds_by_seed import SEEDS, neighbourhood, world

from drivefine_agent.constants import (
    EGO_FRONT_LENGTH_M,
    EGO_LENGTH_M,
    EGO_REAR_AXLE_TO_CENTER_M,
    EGO_WIDTH_M,
)
from drivefine_agent.synthetic.lanes import box_corners
from drivefine_agent.synthetic.signals import ALL_RED_S, YELLOW_S, Signal
from drivefine_agent.synthetic.traffic import MAX_ACCELERATION_MPS2, follow


def _ego_box(frame):
    x, y, heading = frame.ego_pose
    center = np.array([x, y]) + EGO_REAR_AXLE_TO_CENTER_M * np.array([np.cos(heading), np.sin(heading)])
    values = (center[0], center[1], heading, EGO_LENGTH_M, EGO_WIDTH_M)
    return shapely.Polygon(box_corners(*(np.array([v]) for v in values))[0])


def _boxes(tracks):
    table = np.array([(t.x, t.y, t.heading, t.length, t.width) for t in tracks])
    return shapely.polygons(box_corners(*table.T))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ego_touches_nothing(seed):
    for frame in world(seed).frames:
        assert not shapely.intersects(_boxes(frame.tracks), _ego_box(frame)).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_moving_vehicles_hardly_ever_overlap(seed):
    overlaps = pairs = 0
    for frame in world(seed).frames[::4]:
        moving = [t for t in frame.tracks if t.kind == "vehicle" and t.id < 100_000]
        boxes = _boxes(moving)
        tree = shapely.STRtree(boxes)
        hits = tree.query(boxes, predicate="intersects")
        overlaps += int((hits[0] < hits[1]).sum())
        pairs += len(moving)
    assert overlaps <= 0.01 * pairs


@pytest.mark.parametrize("seed", SEEDS)
def test_the_expert_never_enters_a_junction_at_red(seed):
    built = world(seed)
    signals = [i for i, j in enumerate(built.network.junctions) if j.kind == "signal"]
    for before, after in zip(built.frames[:-1], built.frames[1:], strict=True):
        for index in signals:
            for arm_index, arm in enumerate(built.network.junctions[index].arms):
                outside, inside = (_front_beyond_line(frame, arm) for frame in (before, after))
                has_crossed = outside is not None and inside is not None and outside < 0.0 <= inside
                if has_crossed:
                    states = {before.lights[index, arm_index], after.lights[index, arm_index]}
                    assert states != {"red"}


def _front_beyond_line(frame, arm):
    """How far the front bumper is past the stop line of an arm, if the ego is on its incoming lanes."""
    x, y, heading = frame.ego_pose
    front = np.array([x, y]) + EGO_FRONT_LENGTH_M * np.array([np.cos(heading), np.sin(heading)])
    outward = np.array([np.cos(arm.heading), np.sin(arm.heading)])
    delta = front - arm.position
    across = delta @ np.array([-outward[1], outward[0]])
    is_incoming = np.cos(heading - arm.heading) < -0.8
    if not is_incoming or not 0.0 < across < arm.num_in * arm.lane_width_m or abs(delta @ outward) > 12.0:
        return None
    return float(-delta @ outward)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_drive_is_comfortable(seed):
    frames = world(seed).frames
    acceleration = np.array([f.ego_acceleration for f in frames])
    assert acceleration[:, 0].min() > -5.6
    assert acceleration[:, 0].max() < 2.4
    assert (acceleration[:, 0] < -3.0).mean() < 0.05
    assert np.abs(acceleration[:, 1]).max() < 2.5
    yaw_rate = np.diff(np.unwrap([f.ego_pose[2] for f in frames])) / 0.5
    assert np.abs(yaw_rate).max() < 0.95


@pytest.mark.parametrize("seed", SEEDS)
def test_poses_agree_with_the_logged_speed(seed):
    frames = world(seed).frames
    speed = np.array([f.ego_velocity[0] for f in frames])
    travelled = np.hypot(*np.diff([f.ego_pose[:2] for f in frames], axis=0).T)
    # trapezoid of the speeds at both ends; the acceleration may swing by a few m/s^2 in between
    assert travelled == pytest.approx(0.25 * (speed[:-1] + speed[1:]), abs=0.2)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ego_stays_on_the_road(seed):
    built = world(seed)
    roads = [shapely.Polygon(r.band(r.spec.kerb_m(1), -r.spec.kerb_m(-1))) for r in built.network.roads]
    surface = shapely.union_all(
        [shapely.make_valid(p) for p in roads]
        + [shapely.Polygon(j.polygon).buffer(0.05) for j in built.network.junctions]
    )
    assert all(surface.contains(_ego_box(frame)) for frame in built.frames)


def test_drives_have_turns_stops_and_steady_stretches():
    commands, stopped = [], []
    for seed in SEEDS:
        commands += [frame.command for frame in world(seed).frames]
        stopped += [frame.ego_velocity[0] < 0.3 for frame in world(seed).frames]
    shares = np.bincount(commands, minlength=3) / len(commands)
    assert (shares > 0.05).all()
    assert 0.01 < np.mean(stopped) < 0.4


def test_obstacles_reach_into_lanes_of_the_route():
    closures = [s for seed in range(12) for s in neighbourhood(seed)[1].shifts]
    assert any(s.closes_lane for s in closures)
    assert any(0.2 < abs(s.shift_m) < 1.6 and not s.closes_lane for s in closures)


FOLLOWING = [
    # (speed, target, gap, lead speed) -> acceleration, by the formula of the intelligent driver model
    ((0.0, 10.0, 1e9, 0.0), MAX_ACCELERATION_MPS2),  # free road at rest: full acceleration
    ((10.0, 10.0, 1e9, 10.0), 0.0),  # target speed reached
    ((0.0, 10.0, 2.0, 0.0), 0.0),  # at rest at the standstill gap
    # steady following: wanted gap 2 + 1.3 * 5 = 8.5, so 1.7 * (1 - (5 / 10)^4 - 1)
    ((5.0, 10.0, 8.5, 5.0), -1.7 / 16),
]


@pytest.mark.parametrize(("state", "expected"), FOLLOWING)
def test_following(state, expected):
    assert follow(*state) == pytest.approx(expected, abs=1e-6)


def test_signals_never_show_green_to_two_phases():
    network, _ = neighbourhood(3)
    junction = next(j for j in network.junctions if j.kind == "signal")
    signal = Signal(junction, np.random.default_rng(0))
    for _ in range(3000):
        signal.advance(0.1)
        going = {p for p, arms in enumerate(junction.phases) for a in arms if signal.light(a) != "red"}
        assert len(going) <= 1


def test_a_signal_that_is_asked_turns_green_after_yellow_and_all_red():
    network, _ = neighbourhood(3)
    junction = next(j for j in network.junctions if j.kind == "signal")
    signal = Signal(junction, np.random.default_rng(0))
    wanted = (signal.phase + 1) % len(junction.phases)
    signal.ask(wanted)
    arm = junction.phases[wanted][0]
    lights = []
    for _ in range(round((YELLOW_S + ALL_RED_S) / 0.1) + 5):
        signal.advance(0.1)
        lights.append(signal.light(arm))
    assert lights[0] == "red"
    assert lights[-1] == "green"
    for _ in range(1000):  # and stays green until it is released
        signal.advance(0.1)
    assert signal.light(arm) == "green"
