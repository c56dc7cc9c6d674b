"""What stands in a neighbourhood: parked cars, work zones, car parks, buildings, trees.

Obstacles that reach into a lane bend the line that vehicles follow there (`LineShift`): a nudge inside the
lane for a protruding parked car, a whole lane width where a lane is closed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import shapely
from shapely import affinity

from drivefine_agent.constants import EGO_WIDTH_M
from drivefine_agent.synthetic.lanes import FloatArray, Path, smooth_step
from drivefine_agent.synthetic.network import (
    PARKING_MARGIN_M,
    PARKING_WIDTH_M,
    WALKWAY_WIDTH_M,
    Network,
    Road,
    Segment,
)

MAX_CURVATURE_AT_OBSTACLES = 1.0 / 140.0
"""Obstacles stand only where a vehicle's straight continuation stays in its lane for a second [1/m]."""
APPROACH_M = 15.0
"""Vehicles have moved aside this far before an obstacle [m]."""
SIDE_CLEARANCE_M = 0.5
"""Distance that vehicles keep from obstacles beside them [m]."""


@dataclass(frozen=True)
class Prop:
    """A standing object: a box with a type of NAVSIM's list, or `building`, `tree`."""

    kind: str
    x: float
    y: float
    heading: float
    length: float
    width: float
    height: float
    tone: float
    """In [0, 1): picks the colour."""


@dataclass(frozen=True)
class LineShift:
    """Vehicles on a lane keep `shift_m` left of its centre from `start_m` to `end_m`, plus transitions."""

    lane: int
    start_m: float
    end_m: float
    shift_m: float
    closes_lane: bool = False
    """The lane is closed; the vehicles use the neighbouring lane meanwhile."""

    @property
    def transition_m(self) -> float:
        """Length of the smooth change before and after."""
        return 34.0 if self.closes_lane else 9.0 + 11.0 * abs(self.shift_m)

    def profile(self, s: FloatArray) -> FloatArray:
        """(N,) shift at arc lengths (N,)."""
        rise = smooth_step((s - self.start_m + self.transition_m) / self.transition_m)
        fall = smooth_step((self.end_m + self.transition_m - s) / self.transition_m)
        return self.shift_m * np.minimum(rise, fall)


@dataclass
class Scenery:
    """Everything that stands, and how it bends the lanes."""

    props: list[Prop] = field(default_factory=list)
    shifts: list[LineShift] = field(default_factory=list)
    car_parks: list[tuple[int, FloatArray]] = field(default_factory=list)
    """(id, (M, 2) ring): kerbside strips and lots."""
    buildings: list[Prop] = field(default_factory=list)
    trees: list[Prop] = field(default_factory=list)


def furnish(network: Network, rng: np.random.Generator) -> Scenery:
    """Furnishes a network."""
    scenery = Scenery()
    for road_index, road in enumerate(network.roads):
        on_route = road_index in network.route_roads and road_index != network.route_roads[0]
        for side in (-1, 1):
            has_strip = road.spec.parking_right if side < 0 else road.spec.parking_left
            if has_strip:
                park_at_kerb(network, scenery, road, side, rng)
        if on_route:
            add_obstacle(network, scenery, road_index, rng)
    ground = shapely.STRtree(_surfaces(network))
    for road in network.roads:
        for side in (-1, 1):
            add_car_park(network, scenery, road, side, ground, rng)
    _add_backdrop(network, scenery, rng)
    for road_index in network.parking_roads:
        park_on_street(scenery, network.roads[road_index], rng)
    return scenery


def _car(x: float, y: float, heading: float, rng: np.random.Generator, kind: str = "vehicle") -> Prop:
    """A parked car."""
    length = float(rng.uniform(4.2, 5.2))
    return Prop(
        kind,
        x,
        y,
        heading,
        length,
        float(rng.uniform(1.8, 2.05)),
        float(rng.uniform(1.45, 1.9)),
        float(rng.random()),
    )


def _pose_beside(road: Road, s: float, lateral_m: float, side: int) -> tuple[float, float, float]:
    """Pose at arc length s of a road's reference, `lateral_m` to a side, heading with that side's traffic."""
    x, y, heading = road.reference.at(s)
    x, y = x - side * lateral_m * np.sin(heading), y + side * lateral_m * np.cos(heading)
    return float(x), float(y), heading if side < 0 else heading + np.pi


def _is_straight(road: Road, s: float, side: int, ahead_m: float, behind_m: float) -> bool:
    """Whether a road is nearly straight around a place, seen in the driving direction of a side."""
    before, after = (behind_m, ahead_m) if side < 0 else (ahead_m, behind_m)
    near = (road.reference.s > s - before) & (road.reference.s < s + after)
    return bool(np.abs(road.reference.curvature[near]).max(initial=0.0) < MAX_CURVATURE_AT_OBSTACLES)


def _outer_lane(network: Network, road: Road, side: int) -> Segment:
    """The rightmost lane of the direction on a side."""
    return network.segments[(road.forward if side < 0 else road.backward)[-1]]


def _nudge(
    lane: Segment, road: Road, s: float, half_length_m: float, intrusion_m: float, side: int
) -> LineShift | None:
    """The shift that passes something `intrusion_m` inside a lane's right edge at road arc length s."""
    width = 2.0 * float(lane.half_width[0])
    shift = intrusion_m + SIDE_CLEARANCE_M + 0.5 * EGO_WIDTH_M - 0.5 * width
    if shift <= 0.02:
        return None
    ratio = lane.path.length / road.reference.length
    middle = (s if side < 0 else road.reference.length - s) * ratio
    return LineShift(lane.id, middle - half_length_m - APPROACH_M, middle + half_length_m + 2.0, shift)


def park_at_kerb(network: Network, scenery: Scenery, road: Road, side: int, rng: np.random.Generator) -> None:
    """Fills a kerbside strip with cars, a few of which reach into the lane."""
    edge = road.spec.left_width_m if side > 0 else road.spec.right_width_m
    first, last = PARKING_MARGIN_M, road.reference.length - PARKING_MARGIN_M
    if last - first < 15.0:
        return
    ring = road.band(side * (edge - 0.05), side * (edge + PARKING_WIDTH_M), first, last)
    scenery.car_parks.append((network.new_id(), ring))
    lane = _outer_lane(network, road, side)
    s, density = first + 3.5, float(rng.uniform(0.25, 0.75))
    last_intruder = -100.0
    while s < last - 3.5:
        if rng.random() < density and _is_straight(road, s, side, 4.0, 16.0):
            intrusion = float(rng.uniform(-0.45, -0.2))
            if (
                rng.random() < 0.25
                and abs(s - last_intruder) > 28.0
                and 25.0 < s < road.reference.length - 22.0
                and _is_straight(road, s, side, 8.0, 34.0)
            ):
                intrusion, last_intruder = float(rng.uniform(0.3, 0.9)), s
            car = _car(0.0, 0.0, 0.0, rng)
            x, y, heading = _pose_beside(road, s, edge - intrusion + 0.5 * car.width, side)
            skew = float(rng.normal(0.0, 0.02))
            scenery.props.append(
                Prop(car.kind, x, y, heading + skew, car.length, car.width, car.height, car.tone)
            )
            shift = _nudge(lane, road, s, 0.5 * car.length, intrusion, side)
            if shift is not None:
                scenery.shifts.append(shift)
        s += float(rng.uniform(6.2, 8.0))


def park_on_street(scenery: Scenery, road: Road, rng: np.random.Generator) -> None:
    """Parks a few cars on the outer lanes of a street where nobody drives."""
    for side in (-1, 1):
        for s in np.arange(4.0, road.reference.length - 3.0, 7.0):
            if rng.random() < 0.65:
                pose = _pose_beside(road, float(s), road.spec.right_width_m - 1.5, side)
                scenery.props.append(_car(*pose, rng))


def add_obstacle(network: Network, scenery: Scenery, road_index: int, rng: np.random.Generator) -> None:
    """Maybe puts an obstacle in the way: a lane closure, a work zone or a stopped car at the edge."""
    road = network.roads[road_index]
    length = road.reference.length
    if length < 60.0 or rng.random() > 0.9:
        return
    crossing_near = [
        float(road.reference.project((c.start + c.end) / 2)[0][0])
        for c in network.crossings
        if c.junction < 0
    ]
    if road.spec.num_forward >= 2 and length > 95.0 and rng.random() < 0.6:
        close_lane(network, scenery, road, rng)
        return
    if road.spec.parking_right:
        return
    places = [
        s
        for s in rng.uniform(28.0, length - 22.0, 20)
        if _is_straight(road, s, -1, 8.0, 32.0) and not any(abs(s - c) < 14.0 for c in crossing_near)
    ]
    if not places:
        return
    s = float(places[0])
    lane = _outer_lane(network, road, -1)
    edge = road.spec.right_width_m
    intrusion = float(rng.uniform(0.45, 0.95))
    if rng.random() < 0.5:
        car = _car(0.0, 0.0, 0.0, rng)
        x, y, heading = _pose_beside(road, s, edge - intrusion + 0.5 * car.width, -1)
        scenery.props.append(Prop("vehicle", x, y, heading, car.length, car.width, car.height, car.tone))
        half = 0.5 * car.length
    else:
        half = float(rng.uniform(3.0, 9.0))
        if rng.random() < 0.25:
            half = 0.5
            x, y, heading = _pose_beside(road, s, edge - intrusion + 0.45, -1)
            scenery.props.append(Prop("generic_object", x, y, heading, 0.9, 0.9, 0.8, float(rng.random())))
        else:
            _work_zone(scenery, road, s, half, edge - intrusion, edge + 0.4, rng)
    shift = _nudge(lane, road, s, half, intrusion, -1)
    if shift is not None:
        scenery.shifts.append(shift)


def _work_zone(
    scenery: Scenery,
    road: Road,
    s: float,
    half_m: float,
    inner_m: float,
    outer_m: float,
    rng: np.random.Generator,
) -> None:
    """Cones along a taper and the inner border, a barrier at its head, a sign behind."""
    for u in np.arange(-half_m - 4.0, half_m + 0.1, 1.9):
        taper = min(1.0, max(0.0, (u + half_m + 4.0) / 4.0))
        lateral = outer_m + (inner_m + 0.22 - outer_m) * taper
        x, y, heading = _pose_beside(road, s + u, lateral, -1)
        scenery.props.append(Prop("traffic_cone", x, y, heading, 0.4, 0.4, 0.85, float(rng.random())))
    middle = max(inner_m + 0.75, 0.5 * (inner_m + outer_m))
    x, y, heading = _pose_beside(road, s - half_m + 1.5, middle, -1)
    scenery.props.append(Prop("barrier", x, y, heading, 0.5, 1.3, 1.0, 0.0))
    x, y, heading = _pose_beside(road, s + 0.3 * half_m, middle + 0.2, -1)
    scenery.props.append(Prop("czone_sign", x, y, heading, 0.3, 0.9, 1.6, 0.0))


def close_lane(network: Network, scenery: Scenery, road: Road, rng: np.random.Generator) -> None:
    """Closes the outer or inner forward lane of a multi-lane road with a work zone or a stopped vehicle."""
    closes_right = bool(rng.random() < 0.65)
    index = len(road.forward) - 1 if closes_right else 0
    lane = network.segments[road.forward[index]]
    width = road.spec.lane_width_m
    places = [
        s for s in rng.uniform(46.0, road.reference.length - 42.0, 16) if _is_straight(road, s, -1, 8.0, 36.0)
    ]
    if not places:
        return
    s = float(places[0])
    half = float(rng.uniform(3.0, 7.0))
    ratio = lane.path.length / road.reference.length
    inner, outer = index * width, (index + 1) * width
    if rng.random() < 0.5:
        car = _car(0.0, 0.0, 0.0, rng)
        x, y, heading = _pose_beside(road, s, 0.5 * (inner + outer), -1)
        scenery.props.append(Prop("vehicle", x, y, heading, car.length, car.width, car.height, car.tone))
        half = 0.5 * car.length
    else:
        for u in np.arange(-half - 6.0, half + 0.1, 2.0):
            taper = min(1.0, (u + half + 6.0) / 6.0)
            near, far = (inner + 0.35, outer - 0.2) if closes_right else (outer - 0.35, inner + 0.2)
            x, y, heading = _pose_beside(road, s + u, far + (near - far) * taper, -1)
            scenery.props.append(Prop("traffic_cone", x, y, heading, 0.4, 0.4, 0.85, float(rng.random())))
        for u in (-half + 2.0, half - 1.0):
            x, y, heading = _pose_beside(road, s + u, 0.5 * (inner + outer), -1)
            scenery.props.append(Prop("barrier", x, y, heading, 0.6, 1.8, 1.1, 0.0))
        x, y, heading = _pose_beside(road, s, 0.5 * (inner + outer), -1)
        scenery.props.append(Prop("czone_sign", x, y, heading, 0.3, 1.0, 2.0, 0.0))
    shift = width if closes_right else -width
    scenery.shifts.append(
        LineShift(lane.id, s * ratio - half - APPROACH_M - 6.0, s * ratio + half + 3.0, shift, True)
    )


def driving_line(lane: Segment, shifts: list[LineShift]) -> Path:
    """The line vehicles follow on a segment: its centre, bent around obstacles."""
    mine = [shift for shift in shifts if shift.lane == lane.id]
    if not mine:
        return lane.path
    profiles = np.array([shift.profile(lane.path.s) for shift in mine])
    strongest = np.argmax(np.abs(profiles), axis=0)
    return lane.path.offset(profiles[strongest, np.arange(profiles.shape[1])])


def add_car_park(
    network: Network,
    scenery: Scenery,
    road: Road,
    side: int,
    ground: shapely.STRtree,
    rng: np.random.Generator,
) -> None:
    """Maybe adds a lot with rows of parked cars beside a straight stretch of road."""
    has_strip = road.spec.parking_left if side > 0 else road.spec.parking_right
    if has_strip or rng.random() > 0.22 or road.reference.length < 70.0:
        return
    half, depth = float(rng.uniform(10.0, 17.0)), float(rng.choice([12.0, 18.0]))
    s = float(rng.uniform(20.0 + half, max(21.0 + half, road.reference.length - 20.0 - half)))
    near = (road.reference.s > s - half) & (road.reference.s < s + half)
    if near.sum() < 5 or np.ptp(road.reference.heading[near]) > 0.08:
        return
    edge = road.spec.left_width_m if side > 0 else road.spec.right_width_m
    ring = road.band(side * (edge - 0.05), side * (edge + depth), s - half, s + half)
    lot = shapely.Polygon(ring)
    own = shapely.Polygon(road.band(road.spec.left_width_m, -road.spec.right_width_m))
    others = [ground.geometries[i] for i in ground.query(lot.buffer(1.0), predicate="intersects")]
    if any(other.intersection(own).area < 0.9 * own.area for other in others) or not lot.is_valid:
        return
    scenery.car_parks.append((network.new_id(), ring))
    for row in (edge + depth - 2.9,) if depth < 15 else (edge + depth - 2.9, edge + 5.2):
        for u in np.arange(-half + 2.0, half - 1.5, 2.8):
            if rng.random() < 0.55:
                x, y, heading = _pose_beside(road, s + u, row, side)
                turn = float(rng.choice([-1.0, 1.0])) * np.pi / 2
                scenery.props.append(_car(x, y, heading + turn, rng))


def _surfaces(network: Network) -> list[shapely.Polygon]:
    """Paved surfaces: roads with strips, then junctions."""
    roads = [
        shapely.Polygon(r.band(r.spec.kerb_m(1) + WALKWAY_WIDTH_M, -r.spec.kerb_m(-1) - WALKWAY_WIDTH_M))
        for r in network.roads
    ]
    return [shapely.make_valid(p) for p in roads] + [
        shapely.Polygon(j.polygon).buffer(2.5) for j in network.junctions
    ]


def _add_backdrop(network: Network, scenery: Scenery, rng: np.random.Generator) -> None:
    """Buildings and trees beside the roads, clear of every paved surface."""
    solid = [*_surfaces(network), *(shapely.Polygon(ring).buffer(1.0) for _, ring in scenery.car_parks)]
    ground = shapely.STRtree(solid)
    placed: list[shapely.Polygon] = []
    for road in network.roads:
        for side in (-1, 1):
            s = float(rng.uniform(5.0, 20.0))
            while s < road.reference.length - 4.0:
                length, depth = float(rng.uniform(9.0, 22.0)), float(rng.uniform(8.0, 15.0))
                setback = road.spec.kerb_m(side) + float(rng.uniform(6.5, 16.0))
                x, y, heading = _pose_beside(road, s, setback + 0.5 * depth, side)
                tall = float(rng.choice([rng.uniform(3.5, 8.0), rng.uniform(8.0, 22.0)]))
                building = Prop("building", x, y, heading, length, depth, tall, float(rng.random()))
                box = shapely.box(-length / 2, -depth / 2, length / 2, depth / 2)
                box = affinity.translate(affinity.rotate(box, heading, (0, 0), True), x, y)
                if rng.random() < 0.55 and not len(ground.query(box, "intersects")):
                    if not any(box.intersects(other) for other in placed):
                        placed.append(box.buffer(1.0))
                        scenery.buildings.append(building)
                s += float(rng.uniform(14.0, 30.0))
            s = float(rng.uniform(2.0, 14.0))
            while s < road.reference.length:
                setback = road.spec.kerb_m(side) + WALKWAY_WIDTH_M + float(rng.uniform(1.2, 4.0))
                x, y, _ = _pose_beside(road, s, setback, side)
                spot = shapely.Point(x, y).buffer(1.0)
                free = not len(ground.query(spot, "intersects"))
                if rng.random() < 0.5 and free and not any(spot.intersects(other) for other in placed):
                    size = float(rng.uniform(2.2, 4.0))
                    tall = float(rng.uniform(4.5, 8.5))
                    scenery.trees.append(Prop("tree", x, y, 0.0, size, size, tall, float(rng.random())))
                s += float(rng.uniform(8.0, 22.0))
