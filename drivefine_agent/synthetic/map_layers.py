"""A neighbourhood as layers of a nuPlan map, at its place in a city."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import shapely

from drivefine_agent.data.map_writer import (
    Area,
    Lane,
    LaneConnector,
    MapLayers,
    Roadblock,
    RoadblockConnector,
    StopLine,
    TrafficLight,
)
from drivefine_agent.synthetic.lanes import FloatArray, left_of, unit
from drivefine_agent.synthetic.network import SHOULDER_M, WALKWAY_WIDTH_M, Arm, Network, Segment
from drivefine_agent.synthetic.scenery import Scenery

OVERLAP_M = 0.05
"""Neighbouring surfaces overlap by this much, so that no sliver between them is undrivable."""
IDS_PER_NEIGHBOURHOOD = 10_000
FIRST_STOP_LINE_ID, FIRST_WALKWAY_ID = 8000, 9000
"""Local ids of stop lines with their lights, and of walkways; those of roads and scenery lie below."""
STOP_LINE_DEPTH_M = 1.2
Numbering = Callable[[int], int]
"""Local id to map id."""
PolygonMaker = Callable[..., shapely.Polygon]
"""Local ring (and growth [m]) to a polygon in the city."""

_TURN_TYPES = {"straight": 0, "left": 1, "right": 2}


def global_id(place: int, local_id: int) -> int:
    """Map id of a neighbourhood's object."""
    return (place + 1) * IDS_PER_NEIGHBOURHOOD + local_id


def neighbourhood_layers(network: Network, scenery: Scenery, place: int, origin: FloatArray) -> MapLayers:
    """Layers of one neighbourhood.

    Args:
      network: roads in local coordinates.
      scenery: gives the car parks.
      place: number of the neighbourhood within its city; keeps ids apart.
      origin: (2,) city coordinates of the local origin [m].
    """

    def polygon(ring: FloatArray, grow_m: float = 0.0) -> shapely.Polygon:
        shape = shapely.make_valid(shapely.Polygon(ring + origin))
        shape = shape.buffer(grow_m, join_style="mitre") if grow_m else shape
        if shape.geom_type != "Polygon":
            shape = max(
                (g for g in shapely.get_parts(shape) if g.geom_type == "Polygon"), key=lambda g: g.area
            )
        return shapely.orient_polygons(shape)

    def number(local_id: int) -> int:
        return global_id(place, local_id)

    segments = network.segments
    lanes = [
        Lane(
            number(lane.id),
            polygon(lane.polygon()),
            lane.path.xy + origin,
            number(lane.block),
            lane.index,
            lane.speed_limit_mps,
            *_borders(lane, origin),
            width_m=float(2 * lane.half_width[0]),
        )
        for lane in segments.values()
        if not lane.is_connector
    ]
    stop_lines, lights, line_of_arm = _stop_lines(network, number, polygon, origin)
    connectors = []
    for connector in segments.values():
        if not connector.is_connector:
            continue
        junction = network.junctions[connector.junction]
        line = line_of_arm.get((connector.junction, connector.arm))
        connectors.append(
            LaneConnector(
                number(connector.id),
                polygon(connector.polygon()),
                connector.path.xy + origin,
                number(connector.block),
                number(connector.source),
                number(connector.target),
                number(junction.id),
                connector.speed_limit_mps,
                (line,) if line is not None and junction.kind == "signal" else (),
                _TURN_TYPES[connector.turn],
                *_borders(connector, origin),
            )
        )
    blocks, block_connectors = [], []
    for block in network.blocks.values():
        if block.is_connector:
            members = [
                shapely.make_valid(shapely.Polygon(segments[i].polygon() + origin)) for i in block.segments
            ]
            shape = shapely.union_all(members).convex_hull if len(members) > 1 else members[0]
            block_connectors.append(
                RoadblockConnector(
                    number(block.id),
                    polygon(np.array(shape.exterior.coords)[:-1] - origin),
                    number(block.source),
                    number(block.target),
                    number(network.junctions[block.junction].id),
                )
            )
        else:
            blocks.append(Roadblock(number(block.id), polygon(_block_ring(network, block.segments))))
    return MapLayers(
        lanes=lanes,
        lane_connectors=connectors,
        roadblocks=blocks,
        roadblock_connectors=block_connectors,
        intersections=[Area(number(j.id), polygon(j.polygon, OVERLAP_M)) for j in network.junctions],
        stop_lines=stop_lines,
        crosswalks=[Area(number(c.id), polygon(c.polygon())) for c in network.crossings if c.is_marked],
        walkways=_walkways(network, number, polygon),
        carparks=[Area(number(i), polygon(ring)) for i, ring in scenery.car_parks],
        traffic_lights=lights,
    )


def merge_layers(parts: list[MapLayers]) -> MapLayers:
    """All neighbourhoods of a city in one map, in order."""
    return MapLayers(
        **{
            name: [item for part in parts for item in getattr(part, name)]
            for name in MapLayers.__dataclass_fields__
        }
    )


def _borders(segment: Segment, origin: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Left and right border lines of a segment."""
    return segment.path.offset(segment.half_width).xy + origin, segment.path.offset(
        -segment.half_width
    ).xy + origin


def _block_ring(network: Network, lanes: tuple[int, ...]) -> FloatArray:
    """(N, 2) ring of a roadblock: lanes, shoulder, and a few centimetres of the other direction."""
    first, last = network.segments[lanes[0]], network.segments[lanes[-1]]
    left = first.path.offset(first.half_width + OVERLAP_M).xy
    right = last.path.offset(-last.half_width - SHOULDER_M).xy
    return np.vstack([right, left[::-1]])


def _stop_lines(
    network: Network, number: Numbering, polygon: PolygonMaker, origin: FloatArray
) -> tuple[list[StopLine], list[TrafficLight], dict[tuple[int, int], int]]:
    """Stop polygons at the ends of lanes, light points, and the stop polygon of each (junction, arm)."""
    lines: list[StopLine] = []
    lights: list[TrafficLight] = []
    of_arm: dict[tuple[int, int], int] = {}
    for junction_index, junction in enumerate(network.junctions):
        for arm_index, arm in enumerate(junction.arms):
            is_signal = junction.kind == "signal"
            must_stop, gives_way = arm_index in junction.stop_arms, arm_index in junction.yield_arms
            if arm.num_in == 0 or not (is_signal or must_stop or gives_way):
                continue
            base = FIRST_STOP_LINE_ID + 20 * junction_index + 2 * arm_index
            members = tuple(number(i) for i in junction.connectors if network.segments[i].arm == arm_index)
            sources = tuple(
                sorted(
                    {
                        number(network.segments[i].source)
                        for i in junction.connectors
                        if network.segments[i].arm == arm_index
                    }
                )
            )
            lines.append(
                StopLine(
                    number(base),
                    polygon(stop_line_ring(arm, STOP_LINE_DEPTH_M)),
                    sources,
                    members,
                    (number(base + 1),) if is_signal else (),
                    2 if is_signal else 1 if must_stop else 4,
                )
            )
            of_arm[junction_index, arm_index] = number(base)
            if is_signal:
                lights.append(TrafficLight(number(base + 1), arm.left + origin, arm.heading))
    return lines, lights, of_arm


def stop_line_ring(arm: Arm, depth_m: float) -> FloatArray:
    """(4, 2) ring across the incoming lanes of an arm, from the mouth `depth_m` outwards."""
    out = depth_m * unit(arm.heading)
    left = arm.position + (arm.num_in * arm.lane_width_m - 0.1) * left_of(arm.heading)
    right = arm.position + 0.1 * left_of(arm.heading)
    return np.array([left, right, right + out, left + out])


def _walkways(network: Network, number: Numbering, polygon: PolygonMaker) -> list[Area]:
    """Walkways beside the roads."""
    areas = []
    for index, road in enumerate(network.roads):
        for offset, side, has in ((0, 1, road.spec.walkway_left), (1, -1, road.spec.walkway_right)):
            if has:
                kerb = road.spec.kerb_m(side)
                ring = road.band(side * kerb, side * (kerb + WALKWAY_WIDTH_M))
                areas.append(Area(number(FIRST_WALKWAY_ID + 2 * index + offset), polygon(ring)))
    return areas
