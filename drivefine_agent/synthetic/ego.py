"""The demonstrated drive: a lane plan, a smooth path through it, and speed by what is ahead.

The expert drives as a careful person does: it follows at a time gap, slows for curves, stops at red and at
stop lines, gives way to pedestrians, changes lanes when the target lane has a gap, and moves around
obstacles. It is not perfect: its line wanders by a few centimetres and its speed by a few per cent. The
rear axle runs along the path, so poses, speeds and yaw rates are those of a kinematic bicycle.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from drivefine_agent.constants import (
    EGO_FRONT_LENGTH_M,
    EGO_HEIGHT_M,
    EGO_LENGTH_M,
    EGO_REAR_AXLE_TO_CENTER_M,
    EGO_WIDTH_M,
)
from drivefine_agent.synthetic.lanes import (
    FloatArray,
    Path,
    box_corners,
    gaussian_smooth,
    resample,
    smooth_step,
    wrap,
)
from drivefine_agent.synthetic.network import Network
from drivefine_agent.synthetic.roadmap import Roadmap, curve_speed
from drivefine_agent.synthetic.scenery import Scenery
from drivefine_agent.synthetic.traffic import (
    DT_S,
    FREE_DISTANCE_M,
    LINE_GAP_M,
    STANDSTILL_GAP_M,
    Traffic,
    Vehicle,
    follow,
)

PATH_STEP_M = 0.5
OVERHANG_SHIFT_M2 = 4.1
"""In a curve of curvature k the rear axle keeps k times this inside, for equal room (front^2 / 4)."""
COMMAND_DISTANCE_M = 20.0
COMMAND_OFFSET_M = 2.0
"""NAVSIM's driving command looks this far ahead and calls this lateral offset a turn (OpenScene)."""


@dataclass
class LaneChange:
    """A change to the next lane of a road's lane sequence."""

    start_m: float
    """Arc length on the road's reference line where it begins."""
    length_m: float


@dataclass
class RoadPlan:
    """The lanes used on one road of the route, and the connector that follows (none on the last road)."""

    road: int
    lanes: list[int]
    changes: list[LaneChange]
    connector: int | None = None


@dataclass
class Piece:
    """A stretch of the path: one road or one connector."""

    start_m: float
    end_m: float
    plan: int
    is_connector: bool


@dataclass
class SignalEncounter:
    """How the drive meets one set of lights."""

    wants_red: bool
    trigger_m: float
    wait_s: float
    has_begun: bool = False
    is_released: bool = False
    waited_s: float = field(default=0.0)


def plan_lanes(network: Network, rng: np.random.Generator) -> list[RoadPlan]:
    """Which lanes the route uses: as few changes as the turns need, and some of free will on long roads."""
    plans: list[RoadPlan] = []
    entry = int(rng.integers(len(network.roads[network.route_roads[0]].forward)))
    for position, road_index in enumerate(network.route_roads):
        road = network.roads[road_index]
        lanes = list(road.forward)
        if position + 1 == len(network.route_roads):
            plans.append(RoadPlan(road_index, [lanes[entry]], []))
            break
        following = set(network.roads[network.route_roads[position + 1]].forward)
        ways = {
            lane: [c for c in network.outgoing().get(lane, []) if network.segments[c].target in following]
            for lane in lanes
        }
        length = road.reference.length
        most_changes = (
            int(max(0, (length - 30.0) // 30.0)) if position else int(max(0, (length - 60.0) // 30.0))
        )
        exits = [i for i, lane in enumerate(lanes) if ways[lane]]
        nearest = min(exits, key=lambda i: abs(i - entry))
        if rng.random() < 0.45:
            free = [i for i in exits if abs(i - entry) <= min(1, most_changes)]
            nearest = int(rng.choice(free)) if free else nearest
        step = 1 if nearest > entry else -1
        used = [lanes[i] for i in range(entry, nearest + step, step)] if nearest != entry else [lanes[entry]]
        connector = int(rng.choice(ways[lanes[nearest]]))
        plans.append(
            RoadPlan(road_index, used, _draw_changes(len(used) - 1, length, position == 0, rng), connector)
        )
        entry = network.segments[network.segments[connector].target].index
    return plans


def _draw_changes(
    count: int, road_length_m: float, is_first: bool, rng: np.random.Generator
) -> list[LaneChange]:
    """Where `count` lane changes take place on a road."""
    if count == 0:
        return []
    first, last = (50.0 if is_first else 5.0), road_length_m - 14.0
    slot = (last - first) / count
    length = float(np.clip(slot - 2.0, 18.0, rng.uniform(32.0, 45.0)))
    slack = max(0.0, slot - length)
    return [LaneChange(first + i * slot + float(rng.uniform(0.0, slack)), length) for i in range(count)]


class Expert:
    """The ego's driver."""

    def __init__(self, roadmap: Roadmap, scenery: Scenery, rng: np.random.Generator) -> None:
        self.roadmap = roadmap
        self.network = roadmap.network
        self.rng = rng
        self.plans = plan_lanes(self.network, rng)
        self.props = scenery.props
        self.prop_corners = box_corners(
            *(
                np.array([getattr(p, name) for p in self.props])
                for name in ("x", "y", "heading", "length", "width")
            )
        ).reshape(-1, 4, 2)
        self.wander = [
            (float(rng.uniform(0.02, 0.07)), float(rng.uniform(25.0, 70.0)), float(rng.uniform(0, 6.28)))
        ] * 1
        self.wander.append(
            (float(rng.uniform(0.01, 0.05)), float(rng.uniform(70.0, 160.0)), float(rng.uniform(0, 6.28)))
        )
        self.factor = float(rng.uniform(0.94, 1.02))
        self.encounters: dict[int, SignalEncounter] = {}
        self.center_line = self._center_line()
        self.progress_m = 0.0
        self.speed = 0.0
        self.acceleration = 0.0
        self.rebuild()
        self.progress_m = min(30.0, 0.5 * self.pieces[0].end_m)
        self.speed = 0.85 * float(np.interp(self.progress_m, self.path.s, self.allowed_speed))
        self.body = Vehicle(
            1,
            "ego",
            EGO_LENGTH_M,
            EGO_WIDTH_M,
            EGO_HEIGHT_M,
            0.0,
            [self.plans[0].lanes[0]],
            0.0,
            self.speed,
            is_ego=True,
        )
        self.place()

    # -- path --------------------

    def _center_line(self) -> Path:
        """Centre of the planned lanes, without lane changes and obstacles: what driving commands refer to."""
        pieces = []
        for plan in self.plans:
            pieces.append(self.network.segments[plan.lanes[-1]].path.xy[:-1])
            if plan.connector is not None:
                pieces.append(self.network.segments[plan.connector].path.xy[:-1])
        return Path(np.vstack(pieces))

    def road_line(self, plan: RoadPlan) -> FloatArray:
        """(N, 2) line over one road, lane changes included."""
        reference = self.network.roads[plan.road].reference
        line = self.roadmap.lines[plan.lanes[0]].path.xy.copy()
        for change, before, after in zip(plan.changes, plan.lanes[:-1], plan.lanes[1:], strict=True):
            weight = smooth_step((reference.s - change.start_m) / change.length_m)[:, None]
            line += weight * (self.roadmap.lines[after].path.xy - self.roadmap.lines[before].path.xy)
        return line

    def rebuild(self) -> None:
        """Recomputes the path from the plan."""
        lines, owners = [], []
        for index, plan in enumerate(self.plans):
            lines.append(self.road_line(plan))
            owners.append((index, False))
            if plan.connector is not None:
                lines.append(self.roadmap.lines[plan.connector].path.xy)
                owners.append((index, True))
        joined = np.vstack([line[:-1] for line in lines[:-1]] + [lines[-1]])
        grid = resample(joined, PATH_STEP_M)
        smooth = Path(gaussian_smooth(grid, 1.6 / PATH_STEP_M))
        wander = np.zeros(len(grid))
        for amplitude, wavelength, phase in self.wander:
            wander += amplitude * np.sin(2 * np.pi * smooth.s / wavelength + phase)
        inside = OVERHANG_SHIFT_M2 * gaussian_smooth(smooth.curvature, 3.0)
        self.path = Path(smooth.offset(np.clip(inside, -0.45, 0.45) + wander).xy)
        self.curvature = gaussian_smooth(self.path.curvature, 2.0)
        counts = np.cumsum([len(line) - 1 for line in lines])
        joined_s = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(joined, axis=0).T))])
        scale = self.path.length / joined_s[-1]
        self.pieces: list[Piece] = []
        previous = 0.0
        for count, (plan_index, is_connector) in zip(counts, owners, strict=True):
            guess = joined_s[count] * scale
            window = (self.path.s > guess - 25.0) & (self.path.s < guess + 25.0)
            indices = np.flatnonzero(window)
            gaps = ((self.path.xy[indices] - joined[count]) ** 2).sum(1)
            end = float(self.path.s[indices[np.argmin(gaps)]])
            self.pieces.append(Piece(previous, end, plan_index, is_connector))
            previous = end
        limit = np.empty(len(self.path.s))
        for piece in self.pieces:
            plan = self.plans[piece.plan]
            segment = plan.connector if piece.is_connector else plan.lanes[-1]
            inside_piece = (self.path.s >= piece.start_m) & (self.path.s <= piece.end_m)
            limit[inside_piece] = (
                self.network.segments[segment].speed_limit_mps if segment is not None else 5.0
            )
        self.allowed_speed = curve_speed(self.path, 30.0)
        self.allowed_speed = np.minimum(self.allowed_speed, _approach(limit, self.path.s))

    # -- where --------------------

    def piece_index(self) -> int:
        """Index of the piece that the front half of the ego is on."""
        center = self.progress_m + EGO_REAR_AXLE_TO_CENTER_M
        for index, piece in enumerate(self.pieces):
            if center < piece.end_m:
                return index
        return len(self.pieces) - 1

    def place(self) -> None:
        """Tells the body where it is: pose, segment, lanes in use."""
        index = self.piece_index()
        piece = self.pieces[index]
        center = self.progress_m + EGO_REAR_AXLE_TO_CENTER_M
        share = float(np.clip((center - piece.start_m) / (piece.end_m - piece.start_m), 0.0, 1.0))
        plan = self.plans[piece.plan]
        x, y, heading = self.pose()
        self.body.x = x + EGO_REAR_AXLE_TO_CENTER_M * float(np.cos(heading))
        self.body.y = y + EGO_REAR_AXLE_TO_CENTER_M * float(np.sin(heading))
        self.body.heading, self.body.v = heading, self.speed
        self.other_lane: int | None = None
        current = plan.connector if piece.is_connector else plan.lanes[-1]
        if not piece.is_connector:
            reference_s = share * self.network.roads[plan.road].reference.length
            done = sum(reference_s > change.start_m + 0.5 * change.length_m for change in plan.changes)
            current = plan.lanes[done]
            for number, change in enumerate(plan.changes):
                if change.start_m - 15.0 < reference_s < change.start_m + change.length_m:
                    self.other_lane = plan.lanes[number + 1] if done == number else plan.lanes[number]
        assert current is not None
        route = [current]
        if not piece.is_connector and plan.connector is not None:
            route.append(plan.connector)
        for later in self.plans[piece.plan + 1 : piece.plan + 4]:
            route.append(later.lanes[0] if len(later.lanes) == 1 else later.lanes[-1])
            if later.connector is not None:
                route.append(later.connector)
        if self.network.segments[route[0]].is_connector and self.body.stopped_at >= 0:
            self.body.stopped_at = -1
        self.body.route = route
        self.body.s = share * self.roadmap.length(current)
        self.share = share

    def lanes_beside(self) -> dict[int, float]:
        """The other lane of a lane change that is near or under way, with the arc length there."""
        return (
            {}
            if self.other_lane is None
            else {self.other_lane: self.share * self.roadmap.length(self.other_lane)}
        )

    def pose(self) -> tuple[float, float, float]:
        """Rear axle x, y, heading."""
        return self.path.at(self.progress_m)

    def command(self) -> int:
        """Index of the driving command: 0 left, 1 straight, 2 right."""
        x, y, _ = self.pose()
        s, _ = self.center_line.project(np.array([[x, y]]))
        x0, y0, heading = self.center_line.at(float(s[0]))
        x1, y1, _ = self.center_line.at(float(s[0]) + COMMAND_DISTANCE_M)
        lateral = -(x1 - x0) * np.sin(heading) + (y1 - y0) * np.cos(heading)
        return 0 if lateral >= COMMAND_OFFSET_M else 2 if lateral <= -COMMAND_OFFSET_M else 1

    # -- speed --------------------

    def decide(self, traffic: Traffic) -> float:
        """Acceleration for the next step [m/s^2], within comfortable jerk unless something is close."""
        self.meet_signals(traffic)
        self.adjust_lane_change(traffic)
        body = self.body
        if body.stopped_at >= 0:
            body.waiting_s += DT_S
        wobble = 1.0 + 0.025 * np.sin(0.35 * traffic.time_s + 9.0 * self.factor)
        target = (
            self.factor
            * wobble
            * float(np.interp(self.progress_m + 0.4 * self.speed, self.path.s, self.allowed_speed))
        )
        gap, lead_speed = traffic.leader(body, body.route, body.s)
        wanted = follow(self.speed, target, gap, lead_speed)
        if self.other_lane is not None:
            s_other = self.share * self.roadmap.length(self.other_lane)
            gap, lead_speed = traffic.leader(body, [self.other_lane], s_other)
            wanted = min(
                wanted, max(follow(self.speed, target, gap, lead_speed), -2.5 if gap < 1.0 else -6.0)
            )
        gap, lead_speed = self.obstruction(traffic)
        wanted = min(wanted, follow(self.speed, target, gap, lead_speed))
        stop = min(traffic.stop_distance(body), self.path.length - self.progress_m - EGO_FRONT_LENGTH_M - 2.0)
        if stop < FREE_DISTANCE_M:
            wanted = min(wanted, follow(self.speed, target, stop + STANDSTILL_GAP_M - LINE_GAP_M, 0.0, 0.6))
        if self.rng.random() < 0.1 * DT_S:
            self.let_leader_slow_down(traffic)
        down = 2.2 if wanted > -3.0 else 6.0
        limited = float(np.clip(wanted, self.acceleration - down * DT_S, self.acceleration + 2.0 * DT_S))
        return float(np.clip(limited, -5.5, 1.9))

    def let_leader_slow_down(self, traffic: Traffic) -> None:
        """Makes the vehicle ahead slow down unexpectedly, sometimes."""
        for segment in self.body.route[:2]:
            for other in traffic.occupancy.get(segment, ()):
                ahead = segment != self.body.route[0] or other.s > self.body.s + 12.0
                if not other.is_ego and ahead and other.kind == "vehicle" and other.v > 3.0:
                    traffic.slow_down(other)
                    return

    def obstruction(self, traffic: Traffic) -> tuple[float, float]:
        """Gap to and speed of the nearest thing on the path itself, wherever its lane is."""
        start = int(np.searchsorted(self.path.s, self.progress_m))
        stop = min(len(self.path.s), start + int(45.0 / PATH_STEP_M))
        ahead, normals = self.path.xy[start:stop:2], self.path.normal[start:stop:2]
        arcs = self.path.s[start:stop:2]
        if len(arcs) < 2:
            return FREE_DISTANCE_M, 0.0
        x, y, _ = self.pose()
        boxes, speeds, margins = [], [], []
        near = (
            np.flatnonzero(((self.prop_corners[:, 0] - [x, y]) ** 2).sum(-1) < 50.0**2)
            if len(self.props)
            else np.zeros(0, dtype=np.int64)
        )
        if len(near):
            boxes.append(self.prop_corners[near])
            speeds += [0.0] * len(near)
            margins += [0.12] * len(near)
        others = [v for v in traffic.vehicles if not v.is_ego and abs(v.x - x) < 50 and abs(v.y - y) < 50]
        people = [p for p in traffic.pedestrians if abs(p.x - x) < 45 and abs(p.y - y) < 45]
        heading_here = self.path.heading
        for vehicle in others:
            index = start + 2 * int(np.argmin(((ahead - [vehicle.x, vehicle.y]) ** 2).sum(1)))
            speeds.append(vehicle.v * float(np.cos(vehicle.heading - heading_here[index])))
            margins.append(0.2)
        if others:
            table = np.array([(v.x, v.y, v.heading, v.length, v.width) for v in others])
            boxes.append(box_corners(*table.T))
        if people:
            table = np.array([(p.x + 0.8 * p.vx, p.y + 0.8 * p.vy, p.heading, 0.7, 0.7) for p in people])
            boxes.append(box_corners(*table.T))
            speeds += [0.0] * len(people)
            margins += [0.5] * len(people)
        if not boxes:
            return FREE_DISTANCE_M, 0.0
        corners = np.concatenate(boxes)  # (K, 4, 2)
        delta = corners[:, :, None, :] - ahead  # (K, 4, M, 2)
        nearest = np.argmin((delta**2).sum(-1), axis=-1)  # (K, 4)
        chosen = np.take_along_axis(delta, nearest[:, :, None, None], axis=2)[:, :, 0]
        lateral = (chosen * normals[nearest]).sum(-1)
        reach = 0.5 * EGO_WIDTH_M + np.array(margins)[:, None]
        straddles = (lateral.min(1) < 0) & (lateral.max(1) > 0)
        inside = (np.abs(lateral) < reach).any(1) | straddles
        far = np.sqrt((chosen**2).sum(-1)).min(1) > 8.0
        distance = arcs[nearest].min(1) - self.progress_m - EGO_FRONT_LENGTH_M
        behind = nearest.max(1) == 0
        valid = inside & ~far & ~behind & (distance > -2.5)
        if not valid.any():
            return FREE_DISTANCE_M, 0.0
        gaps = np.where(valid, np.maximum(distance, 0.3), FREE_DISTANCE_M)
        worst = int(np.argmin(gaps - 0.0))
        return float(gaps[worst]), max(0.0, speeds[worst])

    def adjust_lane_change(self, traffic: Traffic) -> None:
        """Puts a lane change off while the target lane has no gap and the road is long enough."""
        piece = self.pieces[self.piece_index()]
        plan = self.plans[piece.plan]
        if piece.is_connector or not plan.changes:
            return
        length = self.network.roads[plan.road].reference.length
        here = self.share * length
        for number, change in enumerate(plan.changes):
            if not change.start_m - 8.0 < here < change.start_m - 3.0:
                continue
            target = plan.lanes[number + 1]
            s_target = self.share * self.roadmap.length(target)
            last = plan.changes[number + 1].start_m if number + 1 < len(plan.changes) else length - 12.0
            if self.has_gap(traffic, target, s_target) or change.start_m + 5.0 + change.length_m > last:
                return
            change.start_m += 5.0
            self.rebuild()
            return

    def has_gap(self, traffic: Traffic, lane: int, s: float) -> bool:
        """Whether a lane is free beside the ego, with regard to closing speeds."""
        for other in traffic.occupancy.get(lane, ()):
            if other.is_ego:
                continue
            gap = abs(traffic.position_on(lane, other) - s) - 0.5 * (other.length + EGO_LENGTH_M)
            closing = (self.speed - other.v) if other.s > s else (other.v - self.speed)
            if gap < 3.0 + 2.5 * max(0.0, closing):
                return False
        return True

    def meet_signals(self, traffic: Traffic) -> None:
        """Sees to it that the drive meets red and green lights in fair shares."""
        index = self.piece_index()
        piece = self.pieces[index]
        plan = self.plans[piece.plan]
        if plan.connector is None:
            return
        connector = self.network.segments[plan.connector]
        signal = traffic.signals.get(connector.junction)
        if signal is None:
            return
        encounter = self.encounters.get(connector.junction)
        if encounter is None:
            encounter = SignalEncounter(
                bool(self.rng.random() < 0.5),
                float(self.rng.uniform(18.0, 65.0)),
                float(self.rng.uniform(0.2, 2.5)),
            )
            self.encounters[connector.junction] = encounter
        distance = piece.end_m - self.progress_m - EGO_FRONT_LENGTH_M
        mine = signal.phase_of(connector.arm)
        if piece.is_connector or distance < -1.0:
            if not encounter.is_released:
                encounter.is_released = True
                signal.release()
            return
        if not encounter.wants_red:
            if distance < 75.0 and not encounter.has_begun:
                encounter.has_begun = True
                signal.ask(mine)
        elif not encounter.has_begun:
            if distance < encounter.trigger_m:
                encounter.has_begun = True
                if signal.phase == mine:
                    signal.ask((mine + 1) % len(signal.junction.phases))
                else:
                    signal.is_held = True
        elif encounter.waited_s < encounter.wait_s:
            if self.speed < 1.0 or signal.light(connector.arm) != "red":
                encounter.waited_s += DT_S
            if encounter.waited_s >= encounter.wait_s:
                signal.ask(mine)

    def advance(self, acceleration: float) -> None:
        """Moves the ego over one step."""
        speed = max(0.0, self.speed + DT_S * acceleration)
        self.progress_m = min(self.progress_m + 0.5 * (self.speed + speed) * DT_S, self.path.length - 1.0)
        self.acceleration = (speed - self.speed) / DT_S
        self.speed = speed
        self.place()

    def state(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Rear-axle pose (3,), velocity (2,) and acceleration (2,), the last two in the ego frame."""
        x, y, heading = self.pose()
        curvature = float(np.interp(self.progress_m, self.path.s, self.curvature))
        return (
            np.array([x, y, float(wrap(heading))]),
            np.array([self.speed, 0.0]),
            np.array([self.acceleration, self.speed**2 * curvature]),
        )


def _approach(limit: FloatArray, s: FloatArray) -> FloatArray:
    """Speed limits with a gentle slope before each lower one."""
    squares = limit**2
    for i in range(len(s) - 2, -1, -1):
        squares[i] = min(squares[i], squares[i + 1] + 2.0 * 1.2 * (s[i + 1] - s[i]))
    return np.sqrt(squares)
