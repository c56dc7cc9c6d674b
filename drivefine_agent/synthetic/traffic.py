"""The other road users: vehicles and bicycles on lanes, pedestrians on walkways and crossings.

Vehicles follow their driving lines by the intelligent driver model (Treiber et al. 2000), stop at red and
at stop lines, enter a junction only after it has been granted to them free of conflicts, give way at
crossings, and see the ego as one of them. The world is stepped at 10 Hz.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from drivefine_agent.synthetic.lanes import FloatArray
from drivefine_agent.synthetic.network import WALKWAY_WIDTH_M, Network, Segment
from drivefine_agent.synthetic.roadmap import Roadmap
from drivefine_agent.synthetic.signals import Signal

DT_S = 0.1
MAX_ACCELERATION_MPS2 = 1.7
COMFORTABLE_BRAKING_MPS2 = 2.0
STANDSTILL_GAP_M = 2.0
LINE_GAP_M = 0.8
"""Where vehicles come to rest before a line [m]."""
POPULATION_RADIUS_M = 160.0
"""Road users exist within this distance of the ego."""
KERB_DISTANCE_M = 2.0
"""Pedestrians wait this far from the road [m]."""
ACTIVE_PEDESTRIAN_DISTANCE_M = 150.0
"""Pedestrians further away (in the sum of both coordinates) stand still, unseen."""
FREE_DISTANCE_M = 1e3


@dataclass(eq=False)
class Vehicle:
    """A vehicle or bicycle on its way."""

    id: int
    kind: str
    length: float
    width: float
    height: float
    tone: float
    route: list[int]
    """Segments from the one it is on; extended while it drives."""
    s: float
    """Arc length of its centre on the first segment."""
    v: float
    factor: float = 1.0
    """Its desired speed as a share of the allowed speed."""
    top_speed_mps: float = 40.0
    lateral_m: float = 0.0
    """Offset from its line to the left."""
    acceleration: float = 0.0
    granted: set[int] = field(default_factory=set)
    """Connectors it may use."""
    stopped_at: int = -1
    """Junction where it has come to a stop at the line."""
    waiting_s: float = 0.0
    slow_until_s: float = -1.0
    slow_speed_mps: float = 0.0
    is_ego: bool = False
    x: float = 0.0
    y: float = 0.0
    heading: float = 0.0


@dataclass(eq=False)
class Pedestrian:
    """A person on a walkway (crossing < 0) or at a crossing."""

    id: int
    tone: float
    speed: float
    road: int = -1
    side: int = 1
    s: float = 0.0
    direction: int = 1
    crossing: int = -1
    along_m: float = 0.0
    """On a crossing: distance from its start."""
    is_walking: bool = True
    is_paused: bool = False
    """Stands on a crossing because a vehicle is in the way."""
    wait_s: float = 0.0
    x: float = 0.0
    y: float = 0.0
    heading: float = 0.0
    vx: float = 0.0
    vy: float = 0.0


def follow(v: float, target_mps: float, gap_m: float, lead_speed_mps: float, headway_s: float = 1.3) -> float:
    """Acceleration by the intelligent driver model [m/s^2], between -6 and the maximum."""
    free = 1.0 - (v / max(target_mps, 0.1)) ** 4
    if v > target_mps:
        free = max(free, -1.2)
    braking = v * (v - lead_speed_mps) / (2.0 * np.sqrt(MAX_ACCELERATION_MPS2 * COMFORTABLE_BRAKING_MPS2))
    wanted = STANDSTILL_GAP_M + max(0.0, v * headway_s + braking)
    return float(max(-6.0, MAX_ACCELERATION_MPS2 * (free - (wanted / max(gap_m, 0.3)) ** 2)))


class Traffic:
    """All road users but the ego's mind; the ego's body is the vehicle `ego`."""

    def __init__(self, roadmap: Roadmap, ego: Vehicle, rng: np.random.Generator) -> None:
        self.roadmap = roadmap
        self.network: Network = roadmap.network
        self.ego = ego
        self.rng = rng
        self.time_s = 0.0
        self.vehicles: list[Vehicle] = [ego]
        self.pedestrians: list[Pedestrian] = []
        self.next_id = 1
        self.density = float(rng.uniform(0.4, 0.9))
        self.signals = {
            i: Signal(junction, rng)
            for i, junction in enumerate(self.network.junctions)
            if junction.kind == "signal"
        }
        self.occupancy: dict[int, list[Vehicle]] = {}
        self.extra_s: dict[int, float] = {}
        """Lane -> arc length of the ego on it, for lanes other than the one it is listed on."""
        self.lane_ids = [
            i
            for i, s in self.network.segments.items()
            if not s.is_connector and s.road not in self.network.parking_roads
        ]
        self.grants: dict[int, dict[Vehicle, int]] = {}
        """Junction -> vehicle -> connector."""

    # -- population --------------------

    def populate(self) -> None:
        """Fills the surroundings of the ego before the drive begins."""
        for lane_id in self.lane_ids:
            lane = self.network.segments[lane_id]
            s = float(self.rng.uniform(4.0, 40.0))
            while s < lane.path.length - 8.0:
                if self.rng.random() < self.density:
                    self.try_spawn(lane, s, 0.0, POPULATION_RADIUS_M)
                s += float(self.rng.uniform(14.0, 55.0))
        for index in range(len(self.network.crossings)):
            for _ in range(int(self.rng.integers(0, 3))):
                self.add_crosser(index)
        for road_index, road in enumerate(self.network.roads):
            for side, has in ((1, road.spec.walkway_left), (-1, road.spec.walkway_right)):
                for _ in range(int(self.rng.poisson(road.reference.length / 60.0)) if has else 0):
                    s = float(self.rng.uniform(0.0, road.reference.length))
                    walker = Pedestrian(
                        self.new_id(), float(self.rng.random()), float(self.rng.uniform(0.9, 1.7))
                    )
                    walker.road, walker.side, walker.s = road_index, side, s
                    walker.direction = int(self.rng.choice([-1, 1]))
                    self.pedestrians.append(walker)
                    self.place_pedestrian(walker)

    def new_id(self) -> int:
        """A fresh identity of a road user."""
        self.next_id += 1
        return self.next_id

    def try_spawn(self, lane: Segment, s: float, nearest_m: float, farthest_m: float) -> None:
        """Puts a vehicle on a lane if the place is free and at the right distance from the ego."""
        x, y, _ = self.roadmap.lines[lane.id].path.at(s)
        distance = float(np.hypot(x - self.ego.x, y - self.ego.y))
        if not nearest_m <= distance <= farthest_m:
            return
        closed = self.roadmap.shared.get(lane.id, [])
        if any(start - 10.0 < s < end + 10.0 for _, start, end in closed):
            return
        for other in self.vehicles:
            room = 26.0 if other.is_ego else 12.0
            if np.hypot(x - other.x, y - other.y) < room:
                return
        rng = self.rng
        is_bicycle = bool(rng.random() < 0.07) and lane.index == self.last_index(lane)
        if is_bicycle:
            size, top, lateral = (
                (1.8, 0.65, 1.7),
                float(rng.uniform(3.5, 5.5)),
                -(float(lane.half_width[0]) - 0.55),
            )
        else:
            is_truck = rng.random() < 0.1
            size = (
                (float(rng.uniform(6.5, 9.0)), 2.35, float(rng.uniform(2.6, 3.3)))
                if is_truck
                else (
                    float(rng.uniform(4.1, 5.2)),
                    float(rng.uniform(1.8, 2.05)),
                    float(rng.uniform(1.4, 1.95)),
                )
            )
            top, lateral = 40.0, float(rng.normal(0.0, 0.08))
        factor = float(np.clip(rng.normal(0.9, 0.12), 0.55, 1.08))
        speed = min(top, factor * self.roadmap.lines[lane.id].speed_at(s)) * 0.9
        kind = "bicycle" if is_bicycle else "vehicle"
        vehicle = Vehicle(
            self.new_id(), kind, *size, float(rng.random()), [lane.id], s, speed, factor, top, lateral
        )
        self.extend_route(vehicle)
        if self.stop_distance(vehicle, may_ask=False) < speed**2 / 3.0 + 4.0:
            vehicle.v = (
                0.5 * speed if self.stop_distance(vehicle, may_ask=False) > speed**2 / 12.0 + 4.0 else 0.0
            )
        self.place(vehicle)
        self.vehicles.append(vehicle)

    def last_index(self, lane: Segment) -> int:
        """Index of the rightmost lane beside a lane."""
        road = self.network.roads[lane.road]
        return len(road.forward if lane.is_forward else road.backward) - 1

    def add_crosser(self, crossing_index: int) -> None:
        """Puts a waiting pedestrian at one end of a crossing."""
        crossing = self.network.crossings[crossing_index]
        person = Pedestrian(self.new_id(), float(self.rng.random()), float(self.rng.uniform(1.1, 1.7)))
        person.crossing, person.is_walking = crossing_index, False
        person.direction = int(self.rng.choice([-1, 1]))
        person.along_m = -KERB_DISTANCE_M if person.direction > 0 else crossing.length_m + KERB_DISTANCE_M
        person.side = int(self.rng.integers(-3, 4))
        person.wait_s = float(self.rng.uniform(0.0, 30.0))
        self.pedestrians.append(person)
        self.place_pedestrian(person)

    def renew(self) -> None:
        """Lets far vehicles go and new ones come, once a second."""
        self.vehicles = [
            v
            for v in self.vehicles
            if v.is_ego or np.hypot(v.x - self.ego.x, v.y - self.ego.y) < POPULATION_RADIUS_M + 20.0
        ]
        for _ in range(2):
            if len(self.vehicles) < 6 + 26 * self.density:
                lane = self.network.segments[self.lane_ids[int(self.rng.integers(len(self.lane_ids)))]]
                self.try_spawn(
                    lane, float(self.rng.uniform(3.0, lane.path.length - 5.0)), 85.0, POPULATION_RADIUS_M
                )

    # -- one step --------------------

    def advance(self, ego_acceleration: float) -> None:
        """One step of DT_S for everybody but the ego's pose, which its driver sets."""
        self.time_s += DT_S
        for signal in self.signals.values():
            signal.advance(DT_S)
        accelerations = [0.0 if v.is_ego else self.decide(v) for v in self.vehicles]
        for vehicle, acceleration in zip(self.vehicles, accelerations, strict=True):
            if not vehicle.is_ego:
                self.move(vehicle, acceleration)
        self.ego.acceleration = ego_acceleration
        self.vehicles = [v for v in self.vehicles if v.is_ego or v.route]
        self.release_grants()
        self.walk()
        if round(self.time_s / DT_S) % 10 == 0:
            self.renew()

    def index(self, ego_lanes: dict[int, float]) -> None:
        """Rebuilds the table of who is on which segment.

        Args:
          ego_lanes: further lanes that the ego uses or is about to use, with its arc length there.
        """
        table: dict[int, list[Vehicle]] = {}
        for vehicle in self.vehicles:
            table.setdefault(vehicle.route[0], []).append(vehicle)
        self.occupancy = table
        self.extra_s = {lane: s for lane, s in ego_lanes.items() if lane != self.ego.route[0]}
        for lane in self.extra_s:
            table.setdefault(lane, []).append(self.ego)

    def position_on(self, segment: int, vehicle: Vehicle) -> float:
        """Arc length of a vehicle on a segment it is listed on."""
        return vehicle.s if vehicle.route[0] == segment else self.extra_s[segment]

    def extend_route(self, vehicle: Vehicle) -> None:
        """Chooses the way on until three more segments are known or the road ends."""
        while len(vehicle.route) < 5:
            options = self.roadmap.successors[vehicle.route[-1]]
            if not options:
                return
            vehicle.route.append(options[int(self.rng.integers(len(options)))])

    def leader(self, vehicle: Vehicle, route: list[int], s: float) -> tuple[float, float]:
        """Gap [m] to and speed of the nearest vehicle ahead on a route on which the vehicle is at `s`."""
        offset = -s
        for position, segment in enumerate(route[:5]):
            best, speed = FREE_DISTANCE_M, 0.0
            length = self.roadmap.length(segment)
            for other, distance in self.ahead_on(segment, offset, length, vehicle):
                gap = distance - 0.5 * (vehicle.length + other.length)
                if distance > 0.01 and gap < best:
                    best, speed = gap, other.v
            if best < FREE_DISTANCE_M:
                return best, speed
            offset += length
            if offset > 75.0 or position == len(route) - 1:
                break
        return FREE_DISTANCE_M, 0.0

    def ahead_on(
        self, segment: int, offset: float, length: float, vehicle: Vehicle
    ) -> list[tuple[Vehicle, float]]:
        """Vehicles that matter on a segment of somebody's route, with their distance along that route."""
        found = [
            (other, offset + self.position_on(segment, other))
            for other in self.occupancy.get(segment, ())
            if other is not vehicle
        ]
        for sibling in self.roadmap.siblings.get(segment, ()):
            for other in self.occupancy.get(sibling, ()):
                s_other = self.position_on(sibling, other)
                if other is not vehicle and s_other < 4.0 + 0.5 * other.length:
                    found.append((other, offset + s_other))
        for lane, start, end in self.roadmap.shared.get(segment, ()):
            for other in self.occupancy.get(lane, ()):
                s_other = self.position_on(lane, other)
                if other is not vehicle and start < s_other < end and start < -offset:
                    found.append((other, offset + s_other))
        for rival in self.roadmap.merges.get(segment, ()):
            source = self.network.segments[rival].source
            rival_length = self.roadmap.length(rival)
            for other in self.occupancy.get(rival, ()):
                if other is not vehicle:
                    found.append((other, offset + length - rival_length + self.position_on(rival, other)))
            for other in self.occupancy.get(source, ()):
                remaining = self.roadmap.length(source) - self.position_on(source, other)
                if (
                    other is not vehicle
                    and remaining < 25.0
                    and len(other.route) > 1
                    and other.route[1] == rival
                ):
                    found.append((other, offset + length - rival_length - remaining))
        return found

    def stop_distance(self, vehicle: Vehicle, may_ask: bool = True) -> float:
        """Distance from the front bumper to the nearest line where the vehicle has to stop."""
        offset = -vehicle.s - 0.5 * vehicle.length
        nearest = FREE_DISTANCE_M
        for position, segment_id in enumerate(vehicle.route[:5]):
            segment = self.network.segments[segment_id]
            if (
                position > 0
                and segment.is_connector
                and self.network.junctions[segment.junction].kind != "joint"
            ):
                if offset > -1.5 and not self.may_enter(vehicle, segment, offset, may_ask):
                    nearest = min(nearest, offset)
            for point in self.roadmap.crossing_points.get(segment_id, ()):
                distance = offset + point.entry_m - 1.0
                can_stop = vehicle.v**2 < 2.0 * 3.5 * max(distance, 0.05)
                if -0.6 < distance < 60.0 and can_stop and self.is_crossed(point.crossing, point.along_m):
                    nearest = min(nearest, max(distance, 0.0))
            offset += self.roadmap.length(segment_id)
            if offset > 60.0 or nearest < FREE_DISTANCE_M:
                break
        return nearest

    def is_crossed(self, crossing: int, along_m: float) -> bool:
        """Whether a pedestrian is, or will soon be, in front of a vehicle that crosses at `along_m`."""
        for person in self.pedestrians:
            if person.crossing == crossing and person.is_walking:
                relative = (person.along_m - along_m) * person.direction
                if (-7.0 if person.is_paused else -5.0) < relative < 2.4:
                    return True
        return False

    # -- junctions --------------------

    def may_enter(self, vehicle: Vehicle, connector: Segment, distance_m: float, may_ask: bool) -> bool:
        """Whether a vehicle may pass the line of a junction; asks for the junction when it is near."""
        junction = self.network.junctions[connector.junction]
        must_brake = vehicle.v**2 / (2.0 * max(distance_m, 0.1))
        light = "green"
        if junction.kind == "signal":
            light = self.signals[connector.junction].light(connector.arm)
        if connector.id in vehicle.granted:
            if light != "green" and must_brake < 2.6 and distance_m > 0.3:
                self.revoke(vehicle, connector)
                return False
            return True
        if light == "red" or (light == "yellow" and must_brake < 2.6):
            return False
        if connector.arm in junction.stop_arms and vehicle.stopped_at != junction.id:
            if distance_m < 3.0 and vehicle.v < 0.4:
                vehicle.stopped_at, vehicle.waiting_s = junction.id, 0.0
            return False
        if not may_ask or distance_m > vehicle.v**2 / (2.0 * 1.4) + 12.0:
            return distance_m > vehicle.v**2 / (2.0 * 1.4) + 12.0
        return self.ask(vehicle, connector)

    def ask(self, vehicle: Vehicle, connector: Segment) -> bool:
        """Grants a connector if nobody who conflicts has it or goes first, and if there is room behind it."""
        grants = self.grants.setdefault(connector.junction, {})
        conflicts = self.roadmap.conflicts[connector.id]
        if any(other is not vehicle and theirs in conflicts for other, theirs in grants.items()):
            return False
        if self.yields_to_somebody(vehicle, connector, conflicts):
            return False
        for other in self.occupancy.get(connector.target, ()):
            s_other = self.position_on(connector.target, other)
            if other is not vehicle and other.v < 1.5 and s_other - 0.5 * other.length < vehicle.length + 3.0:
                return False
        for point in self.roadmap.crossing_points.get(connector.id, ()):
            if self.is_crossed(point.crossing, point.along_m):
                return False
        grants[vehicle] = connector.id
        vehicle.granted.add(connector.id)
        return True

    def yields_to_somebody(self, vehicle: Vehicle, connector: Segment, conflicts: frozenset[int]) -> bool:
        """Whether somebody with the right of way arrives soon on a conflicting connector."""
        junction = self.network.junctions[connector.junction]
        mine = self.rank(connector)
        for other in self.vehicles:
            if other is vehicle or len(other.route) < 2 or other.route[1] not in conflicts:
                continue
            theirs = self.network.segments[other.route[1]]
            if junction.kind == "signal" and self.signals[connector.junction].light(theirs.arm) != "green":
                continue
            distance = self.roadmap.length(other.route[0]) - other.s - 0.5 * other.length
            if junction.kind == "all_way_stop":
                held = self.grants.get(connector.junction, {}).values()
                is_first = other.stopped_at == junction.id and other.waiting_s > vehicle.waiting_s
                if is_first and not self.roadmap.conflicts[theirs.id].intersection(held):
                    return True
            elif self.rank(theirs) < mine and distance < 3.6 * max(other.v, 2.0) + 3.0:
                return True
        return False

    def rank(self, connector: Segment) -> int:
        """Order of the right of way; the smaller goes first."""
        junction = self.network.junctions[connector.junction]
        is_minor = connector.arm in junction.yield_arms
        return 10 * is_minor + {"straight": 0, "right": 1, "left": 2}[connector.turn]

    def revoke(self, vehicle: Vehicle, connector: Segment) -> None:
        """Takes a grant back from a vehicle that can still stop."""
        vehicle.granted.discard(connector.id)
        self.grants.get(connector.junction, {}).pop(vehicle, None)

    def release_grants(self) -> None:
        """Frees junctions that vehicles have left."""
        alive = {id(v) for v in self.vehicles}
        for grants in self.grants.values():
            for vehicle in list(grants):
                connector = grants[vehicle]
                target = self.network.segments[connector].target
                has_left = connector not in vehicle.route and (
                    vehicle.route[:1] != [target] or vehicle.s > 0.5 * vehicle.length + 0.5
                )
                if id(vehicle) not in alive or has_left:
                    del grants[vehicle]
                    vehicle.granted.discard(connector)

    # -- vehicles --------------------

    def decide(self, vehicle: Vehicle) -> float:
        """Acceleration of a vehicle [m/s^2]."""
        if vehicle.stopped_at >= 0:
            vehicle.waiting_s += DT_S
        target = min(vehicle.factor * self.allowed_speed(vehicle), vehicle.top_speed_mps)
        if self.time_s < vehicle.slow_until_s:
            target = min(target, vehicle.slow_speed_mps)
        elif vehicle.kind == "vehicle" and self.rng.random() < 0.02 * DT_S:
            self.slow_down(vehicle)
        gap, lead_speed = self.leader(vehicle, vehicle.route, vehicle.s)
        stop = self.stop_distance(vehicle)
        acceleration = follow(vehicle.v, target, gap, lead_speed)
        if stop < FREE_DISTANCE_M:
            acceleration = min(
                acceleration, follow(vehicle.v, target, stop + STANDSTILL_GAP_M - LINE_GAP_M, 0.0, 0.5)
            )
        return acceleration

    def slow_down(self, vehicle: Vehicle) -> None:
        """Makes a vehicle drive slowly for some seconds, as one that looks for an address."""
        vehicle.slow_until_s = self.time_s + float(self.rng.uniform(3.0, 6.0))
        vehicle.slow_speed_mps = float(self.rng.uniform(0.3, 4.0))

    def allowed_speed(self, vehicle: Vehicle) -> float:
        """Speed that limits and curves ahead allow."""
        line = self.roadmap.lines[vehicle.route[0]]
        speed = line.speed_at(vehicle.s)
        remaining = line.path.length - vehicle.s
        for segment in vehicle.route[1:4]:
            start = float(self.roadmap.lines[segment].allowed_speed[0])
            speed = min(speed, float(np.sqrt(start**2 + 2.0 * 1.2 * max(remaining, 0.0))))
            remaining += self.roadmap.length(segment)
        return speed

    def move(self, vehicle: Vehicle, acceleration: float) -> None:
        """Integrates a vehicle over one step."""
        speed = max(0.0, vehicle.v + DT_S * acceleration)
        vehicle.s += 0.5 * (vehicle.v + speed) * DT_S
        vehicle.acceleration = (speed - vehicle.v) / DT_S
        vehicle.v = speed
        while vehicle.route and vehicle.s > self.roadmap.length(vehicle.route[0]):
            if len(vehicle.route) == 1:
                vehicle.route = []
                return
            vehicle.s -= self.roadmap.length(vehicle.route[0])
            vehicle.route.pop(0)
            if self.network.segments[vehicle.route[0]].is_connector:
                vehicle.stopped_at = -1
            self.extend_route(vehicle)
        self.place(vehicle)

    def place(self, vehicle: Vehicle) -> None:
        """Sets a vehicle's centre pose from its arc length."""
        x, y, heading = self.roadmap.lines[vehicle.route[0]].path.at(vehicle.s)
        vehicle.x = x - vehicle.lateral_m * np.sin(heading)
        vehicle.y = y + vehicle.lateral_m * np.cos(heading)
        vehicle.heading = heading

    # -- pedestrians --------------------

    def walk(self) -> None:
        """One step of all pedestrians."""
        for person in self.pedestrians:
            if abs(person.x - self.ego.x) + abs(person.y - self.ego.y) > ACTIVE_PEDESTRIAN_DISTANCE_M:
                continue
            if person.crossing < 0:
                self.stroll(person)
            elif person.is_walking:
                self.cross(person)
            else:
                person.wait_s -= DT_S
                if person.wait_s <= 0.0 and self.may_cross(person):
                    person.is_walking = True
            if person.is_walking or person.wait_s > 0.0:
                self.place_pedestrian(person)

    def stroll(self, person: Pedestrian) -> None:
        """Walks along a walkway and turns at its ends."""
        length = self.network.roads[person.road].reference.length
        person.s += person.direction * person.speed * DT_S
        if not 0.0 < person.s < length:
            person.s = float(np.clip(person.s, 0.0, length))
            person.direction = -person.direction

    def cross(self, person: Pedestrian) -> None:
        """Walks over a crossing and waits on the other side."""
        length = self.network.crossings[person.crossing].length_m
        person.is_paused = self.is_blocked(person)
        if person.is_paused:
            walked = person.along_m if person.direction > 0 else length - person.along_m
            if walked < 0.5:  # still at the kerb: look again before setting off
                person.is_walking, person.is_paused, person.wait_s = False, False, 1.0
            return
        person.along_m += person.direction * person.speed * DT_S
        if not -KERB_DISTANCE_M <= person.along_m <= length + KERB_DISTANCE_M:
            person.along_m = float(np.clip(person.along_m, -KERB_DISTANCE_M, length + KERB_DISTANCE_M))
            person.direction, person.is_walking = -person.direction, False
            person.wait_s = float(self.rng.uniform(15.0, 45.0))

    def is_blocked(self, person: Pedestrian) -> bool:
        """Whether a vehicle stands or passes right in front of a pedestrian."""
        x, y = person.x + 0.9 * np.cos(person.heading), person.y + 0.9 * np.sin(person.heading)
        for vehicle in self.vehicles:
            dx, dy = x - vehicle.x, y - vehicle.y
            if abs(dx) + abs(dy) > 14.0:
                continue
            cos, sin = np.cos(vehicle.heading), np.sin(vehicle.heading)
            along, across = cos * dx + sin * dy, -sin * dx + cos * dy
            ahead = 0.5 * vehicle.length + 0.5 + 0.6 * vehicle.v
            if -0.5 * vehicle.length - 0.5 < along < ahead and abs(across) < 0.5 * vehicle.width + 0.5:
                return True
        return False

    def may_cross(self, person: Pedestrian) -> bool:
        """Whether all vehicles that come to the crossing can stop comfortably, and no light forbids it."""
        crossing = self.network.crossings[person.crossing]
        if np.hypot(person.x - self.ego.x, person.y - self.ego.y) > 90.0:
            return False
        signal = self.signals.get(crossing.junction)
        if signal is not None and signal.light(crossing.arm) != "red":
            return False
        for vehicle in self.vehicles:
            distance = self.distance_to_crossing(vehicle, person.crossing)
            if distance is not None and distance < vehicle.v**2 / (2.0 * 1.6) + 0.8 * vehicle.v + 1.0:
                if vehicle.v > 0.3 or distance < 0.2:
                    return False
        return True

    def distance_to_crossing(self, vehicle: Vehicle, crossing: int) -> float | None:
        """Distance from a vehicle's front to a crossing on its route, or None; negative while on it."""
        offset = -vehicle.s - 0.5 * vehicle.length
        for segment in vehicle.route[:4]:
            for point in self.roadmap.crossing_points.get(segment, ()):
                distance = offset + point.entry_m
                if point.crossing == crossing and distance > -vehicle.length - 5.0:
                    return distance
            offset += self.roadmap.length(segment)
            if offset > 60.0:
                break
        return None

    def place_pedestrian(self, person: Pedestrian) -> None:
        """Sets a pedestrian's pose and velocity."""
        if person.crossing >= 0:
            crossing = self.network.crossings[person.crossing]
            direction = crossing.direction
            across = np.array([-direction[1], direction[0]])
            position = crossing.start + person.along_m * direction + 0.3 * person.side * across
            course: FloatArray = person.direction * direction
        else:
            road = self.network.roads[person.road]
            x, y, heading = road.reference.at(person.s)
            lateral = person.side * (road.spec.kerb_m(person.side) + 0.5 * WALKWAY_WIDTH_M)
            position = np.array([x - lateral * np.sin(heading), y + lateral * np.cos(heading)])
            course = person.direction * np.array([np.cos(heading), np.sin(heading)])
        speed = person.speed if person.is_walking and not person.is_paused else 0.0
        person.x, person.y = float(position[0]), float(position[1])
        person.heading = float(np.arctan2(course[1], course[0]))
        person.vx, person.vy = float(speed * course[0]), float(speed * course[1])
