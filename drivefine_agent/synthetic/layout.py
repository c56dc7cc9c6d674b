"""Draws a neighbourhood's road network: a winding route with side roads that never crosses itself.

The route is grown piece by piece: a road with a random cross-section and curvature profile, then a junction
(turned or crossed) or a joint (lanes end, merge or begin), then the next road. A piece that comes too near
to what exists is drawn again; a layout that gets stuck is given up and the next one begun, all from the
same generator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import shapely

from drivefine_agent.synthetic import junctions as jn
from drivefine_agent.synthetic.lanes import FloatArray, Path, gaussian_smooth, integrate_curvature, unit, wrap
from drivefine_agent.synthetic.network import (
    SHOULDER_M,
    WALKWAY_WIDTH_M,
    Arm,
    Block,
    Crossing,
    JunctionKind,
    Network,
    Road,
    RoadSpec,
    Segment,
)

MAX_HEADING_DEVIATION_RAD = np.radians(125.0)
"""The route never turns further than this from its first direction, so it seldom meets itself."""
CLEARANCE_M = 7.0
"""Free ground between the borders of roads that are not neighbours."""
FILL_ATTEMPTS_PER_ROAD = 1000
FILL_DISTANCE_M = 110.0
LATERAL_ACCELERATION_MPS2 = 2.0
"""Speed limits follow from curvature by this bound (times 1.1 in speed)."""


@dataclass
class _PlannedJunction:
    """A junction that is built once all its roads exist."""

    kind: JunctionKind
    arms: list[Arm]
    center: FloatArray
    crosswalk_arms: list[int]


class LayoutStuckError(Exception):
    """The next piece of the route does not fit anywhere; begin a new layout."""


def draw_network(rng: np.random.Generator, route_length_m: float, is_dense: bool = False) -> Network:
    """A road network whose route is at least `route_length_m` long and starts at the local origin.

    Args:
      rng: draws everything.
      route_length_m: of the ego's drive.
      is_dense: fill the free ground beside the route with short streets of parked cars, so that as many lanes
        and road users are around the ego as in a city centre.
    """
    while True:
        layout = _Layout(rng)
        try:
            network = layout.grow(route_length_m)
        except LayoutStuckError:
            continue
        if is_dense:
            layout.fill()
        return network


def draw_spec(rng: np.random.Generator) -> RoadSpec:
    """A random road cross-section; the speed limit is the road class's, before curves are considered."""
    shape = rng.choice(len(_SHAPES), p=_SHAPE_WEIGHTS)
    forward, backward = _SHAPES[shape]
    lanes = max(forward, backward)
    parking = rng.random(2) < (0.4 if lanes < 3 else 0.0)
    walkway = rng.random(2) < 0.75
    limits = {1: (11.2, 13.4, 13.4), 2: (13.4, 13.4, 15.6), 3: (13.4, 15.6, 15.6)}[lanes]
    return RoadSpec(
        forward,
        backward,
        round(float(rng.uniform(3.6, 4.1) if lanes == 1 else rng.uniform(3.4, 3.8)), 2),
        float(rng.choice(limits)),
        bool(parking[0]),
        bool(parking[1]),
        bool(walkway[0] or parking[0]),
        bool(walkway[1] or parking[1]),
    )


_SHAPES = ((1, 1), (2, 2), (2, 1), (1, 2), (3, 3), (3, 2), (2, 3))
_SHAPE_WEIGHTS = (0.52, 0.22, 0.07, 0.07, 0.06, 0.03, 0.03)


def draw_curvature(rng: np.random.Generator, length_m: float, num_lanes: int) -> FloatArray:
    """(N,) curvature per metre of a road: straight, arc, S-curve or winding, straight at both ends."""
    count = int(length_m)
    kind = rng.choice(["straight", "arc", "s_curve", "winding"], p=[0.08, 0.26, 0.36, 0.30])
    smallest, largest = {1: (30.0, 110.0), 2: (50.0, 170.0), 3: (90.0, 300.0)}[num_lanes]
    curvature = np.zeros(count)
    pieces = {"straight": 0, "arc": 1, "s_curve": 2, "winding": int(rng.integers(3, 5))}[kind]
    inner = np.linspace(8, count - 8, pieces + 1).astype(int)
    sign = rng.choice([-1.0, 1.0])
    for first, last in pairwise(inner):
        radius = float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
        bend = min(last - first, radius * float(rng.uniform(0.5, 1.1)))  # 29 to 63 degrees a piece
        middle = 0.5 * (first + last)
        curvature[int(middle - bend / 2) : int(middle + bend / 2)] = sign / radius
        sign = -sign if rng.random() < 0.8 else sign
    taper = np.minimum(1.0, np.minimum(np.arange(count), np.arange(count)[::-1]) / 8.0)
    return gaussian_smooth(curvature, 3.0) * taper


def limit_speed(spec: RoadSpec, curvature: FloatArray) -> RoadSpec:
    """The spec with a speed limit that its sharpest curve allows, in steps of 5 mph down to 15 mph."""
    sharpest = float(np.max(np.abs(curvature)))
    allowed = 1.1 * np.sqrt(LATERAL_ACCELERATION_MPS2 / max(sharpest, 1e-4))
    limits = [limit for limit in (15.6, 13.4, 11.2, 8.9, 6.7) if limit <= max(allowed, 6.7)]
    return replace(spec, speed_limit_mps=min(spec.speed_limit_mps, limits[0]))


class _Layout:
    """A network while it grows, and the ground it occupies."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.network = Network()
        self.occupied: list[shapely.Polygon] = []
        self.heading = float(rng.uniform(-np.pi, np.pi))
        self.planned: _PlannedJunction | None = None

    def grow(self, route_length_m: float) -> Network:
        """Adds pieces until the route is long enough."""
        position, heading = np.zeros(2), self.heading
        spec = draw_spec(self.rng)
        length = 0.0
        neighbours: list[shapely.Polygon] = []
        while True:
            reference, spec = self.draw_route_road(position, heading, spec, neighbours)
            road_index = self.add_road(reference, spec)
            self.network.route_roads.append(road_index)
            length += reference.length
            if length >= route_length_m:
                self.finish()
                return self.network
            ground = self.ground(reference, spec)
            position, heading, spec, neighbours, crossed = self.draw_node(road_index, ground)
            length += crossed

    def draw_route_road(
        self, position: FloatArray, heading: float, spec: RoadSpec, neighbours: list[shapely.Polygon]
    ) -> tuple[Path, RoadSpec]:
        """A road from a pose, clear of everything but its neighbours, with room for what follows."""
        lanes = max(spec.num_forward, spec.num_backward)
        for _ in range(14):
            length = float(self.rng.uniform(60.0, 145.0)) * (1.0 + 0.15 * (lanes - 1))
            curvature = draw_curvature(self.rng, length, lanes)
            reference = integrate_curvature(position, heading, curvature)
            deviation = abs(float(wrap(reference.heading[-1] - self.heading)))
            if deviation > MAX_HEADING_DEVIATION_RAD:
                continue
            ahead = reference.xy[-1] + 30.0 * unit(float(reference.heading[-1]))
            room = shapely.Point(*ahead).buffer(28.0)
            limited = limit_speed(spec, curvature)
            if self.is_free(self.ground(reference, limited), neighbours) and self.is_free(room, neighbours):
                return reference, limited
        raise LayoutStuckError

    def draw_node(
        self, road_index: int, ground: shapely.Polygon
    ) -> tuple[FloatArray, float, RoadSpec, list[shapely.Polygon], float]:
        """A junction or joint after a road: where, in which direction and how wide the next road starts."""
        if self.rng.random() < 0.68:
            for _ in range(10):
                node = self.draw_crossroads(road_index, ground)
                if node is not None:
                    return node
        return self.draw_joint(road_index, ground)

    def draw_joint(
        self, road_index: int, ground: shapely.Polygon
    ) -> tuple[FloatArray, float, RoadSpec, list[shapely.Polygon], float]:
        """A joint: the road goes on with another number of lanes."""
        road = self.network.roads[road_index]
        spec = road.spec
        changes = [
            (f, b)
            for f in (spec.num_forward - 1, spec.num_forward, spec.num_forward + 1)
            for b in (spec.num_backward - 1, spec.num_backward, spec.num_backward + 1)
            if 1 <= f <= 3 and 1 <= b <= 3 and abs(f - b) <= 1
        ]
        forward, backward = changes[int(self.rng.integers(len(changes)))]
        following = replace(
            draw_spec(self.rng), num_forward=forward, num_backward=backward, lane_width_m=spec.lane_width_m
        )
        if max(forward, backward) == 3:
            following = replace(following, parking_left=False, parking_right=False)
        changed = (forward, backward) != (spec.num_forward, spec.num_backward)
        length = float(self.rng.uniform(28.0, 40.0)) if changed else 12.0
        end, heading = road.reference.xy[-1], float(road.reference.heading[-1])
        start = end + length * unit(heading)
        arms = [self.end_arm(road_index), self.start_arm(len(self.network.roads), start, heading, following)]
        polygon = shapely.Polygon(jn.pave(arms)).buffer(CLEARANCE_M)
        if not self.is_free(polygon, [ground]):
            raise LayoutStuckError
        self.planned = _PlannedJunction("joint", arms, 0.5 * (end + start), [])
        self.occupied.append(polygon)
        return start, heading, following, [polygon], length

    def draw_crossroads(
        self, road_index: int, ground: shapely.Polygon
    ) -> tuple[FloatArray, float, RoadSpec, list[shapely.Polygon], float] | None:
        """A three- or four-way junction with its side roads, or None if this draw does not fit."""
        rng = self.rng
        road = self.network.roads[road_index]
        end, heading = road.reference.xy[-1], float(road.reference.heading[-1])
        directions = {
            "left": heading + np.pi / 2 + float(rng.uniform(-0.3, 0.3)),
            "straight": heading + float(rng.uniform(-0.2, 0.2)),
            "right": heading - np.pi / 2 + float(rng.uniform(-0.3, 0.3)),
        }
        present = list(directions)
        if rng.random() < 0.5:
            present.remove(str(rng.choice(present)))
        allowed = [
            name
            for name in present
            if abs(float(wrap(directions[name] - self.heading))) < MAX_HEADING_DEVIATION_RAD - 0.25
        ]
        if not allowed:
            return None
        weights = np.array([{"left": 0.4, "straight": 0.2, "right": 0.4}[name] for name in allowed])
        exit_name = str(rng.choice(allowed, p=weights / weights.sum()))
        names = [exit_name] + [name for name in present if name != exit_name]
        specs = [draw_spec(rng) for _ in names]
        for i, name in enumerate(names):
            if name == "straight":
                specs[i] = replace(specs[i], lane_width_m=road.spec.lane_width_m)
                if rng.random() < 0.6:
                    specs[i] = replace(
                        specs[i], num_forward=road.spec.num_forward, num_backward=road.spec.num_backward
                    )
            if max(specs[i].num_forward, specs[i].num_backward) == 3:
                specs[i] = replace(specs[i], parking_left=False, parking_right=False)
        kind: JunctionKind = "signal"
        if rng.random() < 0.42:
            kind = "yield" if rng.random() < 0.75 else "all_way_stop"
        has_crosswalks = rng.random() < (0.85 if kind == "signal" else 0.5)
        headings = [heading + np.pi] + [directions[name] for name in names]
        lefts = [SHOULDER_M + w for w in (road.spec.right_width_m, *(spec.left_width_m for spec in specs))]
        rights = [SHOULDER_M + w for w in (road.spec.left_width_m, *(spec.right_width_m for spec in specs))]
        room = jn.CROSSWALK_ROOM_M if has_crosswalks else 1.0
        distances = jn.mouth_distances(headings, lefts, rights, room)
        if max(distances) > 30.0:
            return None
        center = end + distances[0] * unit(heading)
        starts = [center + d * unit(h) for d, h in zip(distances[1:], headings[1:], strict=True)]
        side_indices = [len(self.network.roads) + i for i in range(len(names) - 1)]
        exit_index = len(self.network.roads) + len(names) - 1
        arms = [self.end_arm(road_index)]
        indices = [exit_index, *side_indices]
        arms += [
            self.start_arm(i, p, h, spec)
            for i, p, h, spec in zip(indices, starts, headings[1:], specs, strict=True)
        ]
        polygon = shapely.Polygon(jn.pave(arms)).buffer(CLEARANCE_M)
        if not polygon.is_valid or not self.is_free(polygon, [ground]):
            return None
        sides: list[tuple[Path, RoadSpec]] = []
        grounds: list[shapely.Polygon] = []
        for start, direction, spec in zip(starts[1:], headings[2:], specs[1:], strict=True):
            side = self.draw_side_road(start, direction, spec, [polygon, ground], grounds)
            if side is None:
                return None
            sides.append(side)
            grounds.append(self.ground(*side))
        for reference, spec in sides:
            self.add_road(reference, spec)
        crosswalk_arms = [
            i for i in range(len(arms)) if has_crosswalks and (kind == "signal" or rng.random() < 0.7)
        ]
        self.planned = _PlannedJunction(kind, arms, center, crosswalk_arms)
        self.occupied += [polygon, *grounds]
        crossed = distances[0] + distances[1]
        return starts[0], headings[1], specs[0], [polygon, *grounds], crossed

    def draw_side_road(
        self,
        start: FloatArray,
        heading: float,
        spec: RoadSpec,
        neighbours: list[shapely.Polygon],
        also: list[shapely.Polygon],
    ) -> tuple[Path, RoadSpec] | None:
        """A road that leads from a junction out of the neighbourhood, or None if there is no room."""
        for length in (float(self.rng.uniform(70.0, 110.0)), 50.0):
            curvature = 0.6 * draw_curvature(self.rng, length, max(spec.num_forward, spec.num_backward))
            reference = integrate_curvature(start, heading, curvature)
            limited = limit_speed(spec, curvature)
            ground = self.ground(reference, limited)
            trimmed = self.ground(reference, limited, trim_m=18.0)
            if self.is_free(ground, neighbours) and not any(trimmed.intersects(other) for other in also):
                return reference, limited
        return None

    def finish(self) -> None:
        """Adds crossings away from junctions."""
        for road_index in self.network.route_roads[:-1]:
            road = self.network.roads[road_index]
            if road.reference.length < 75.0 or self.rng.random() > 0.45:
                continue
            s = float(self.rng.uniform(32.0, road.reference.length - 32.0))
            x, y, heading = road.reference.at(s)
            normal = np.array([-np.sin(heading), np.cos(heading)])
            left, right = road.spec.kerb_m(1) + 0.3, -road.spec.kerb_m(-1) - 0.3
            position = np.array([x, y])
            self.network.crossings.append(
                Crossing(
                    self.network.new_id(),
                    position + left * normal,
                    position + right * normal,
                    3.2,
                    bool(self.rng.random() < 0.65),
                )
            )

    def fill(self) -> None:
        """Adds short streets, joined to nothing, wherever there is room not far from the route."""
        for road_index in self.network.route_roads:
            line = self.network.roads[road_index].reference
            for _ in range(FILL_ATTEMPTS_PER_ROAD):
                x, y, heading = line.at(float(self.rng.uniform(0.0, line.length)))
                position = np.array([x, y]) + self.rng.uniform(-FILL_DISTANCE_M, FILL_DISTANCE_M, 2)
                turn = float(self.rng.choice([0.0, np.pi / 2, np.pi])) + float(self.rng.normal(0.0, 0.1))
                curvature = np.full(int(self.rng.integers(24, 40)), 0.01)
                reference = integrate_curvature(position, heading + turn, curvature)
                spec = RoadSpec(3, 3, 3.0, 6.7, walkway_left=False)
                kerbs = shapely.LineString(reference.xy).buffer(spec.kerb_m(1) + 0.2, cap_style="flat")
                if self.is_free(kerbs, []):
                    self.network.parking_roads.append(self.add_road(reference, spec))
                    self.occupied[-1] = kerbs  # they may stand closer than the roads of the route

    def add_road(self, reference: Path, spec: RoadSpec) -> int:
        """Adds a road with its lanes and lane groups, then whatever junction waits for it."""
        network = self.network
        index = len(network.roads)
        sides: list[tuple[int, ...]] = []
        for is_forward, count in ((True, spec.num_forward), (False, spec.num_backward)):
            block = network.new_id()
            lanes: list[int] = []
            for lane_index in range(count):
                shift = (lane_index + 0.5) * spec.lane_width_m
                path = reference.offset(-shift) if is_forward else reference.offset(shift).reversed()
                lane = Segment(
                    network.new_id(),
                    False,
                    block,
                    path,
                    np.full(len(path.xy), 0.5 * spec.lane_width_m),
                    spec.speed_limit_mps,
                    road=index,
                    index=lane_index,
                    is_forward=is_forward,
                )
                network.segments[lane.id] = lane
                lanes.append(lane.id)
            network.blocks[block] = Block(block, False, tuple(lanes))
            sides.append(tuple(lanes))
        network.roads.append(Road(spec, reference, sides[0], sides[1]))
        self.occupied.append(self.ground(reference, spec))
        self.join_planned(index)
        return index

    def join_planned(self, road_index: int) -> None:
        """Builds the junction that was planned before this road, once all its roads exist."""
        planned = self.planned
        if planned is None or max(arm.road for arm in planned.arms) != road_index:
            return
        jn.join(self.network, planned.kind, planned.arms, planned.center, self.rng)
        jn.add_crosswalks(self.network, len(self.network.junctions) - 1, planned.crosswalk_arms)
        self.planned = None

    def end_arm(self, road_index: int) -> Arm:
        """The mouth where a road ends."""
        road = self.network.roads[road_index]
        spec = road.spec
        end, heading = road.reference.xy[-1], float(road.reference.heading[-1])
        return Arm(
            road_index, True, end, heading + np.pi, spec.num_forward, spec.num_backward, spec.lane_width_m
        )

    def start_arm(self, road_index: int, start: FloatArray, heading: float, spec: RoadSpec) -> Arm:
        """The mouth where a road starts."""
        return Arm(road_index, False, start, heading, spec.num_backward, spec.num_forward, spec.lane_width_m)

    def ground(self, reference: Path, spec: RoadSpec, trim_m: float = 0.0) -> shapely.Polygon:
        """The ground a road needs: lanes, parking, walkways and half the clearance."""
        line = reference.xy[reference.s >= trim_m]
        half = max(spec.kerb_m(1), spec.kerb_m(-1)) + WALKWAY_WIDTH_M + 0.5 * CLEARANCE_M
        return shapely.LineString(line).buffer(half, cap_style="flat")

    def is_free(self, ground: shapely.Polygon, neighbours: list[shapely.Polygon]) -> bool:
        """Whether ground meets nothing but its neighbours."""
        for other in self.occupied:
            is_neighbour = any(other is n or other.equals_exact(n, 1e-9) for n in neighbours)
            if not is_neighbour and other.intersects(ground):
                return False
        return True
