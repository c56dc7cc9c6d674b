"""The route as the reference planner uses it: its blocks and lanes, and the repair of a broken one.

A *block* is a roadblock or a roadblock connector of the map; the two alternate along a route. Blocks are
looked up as NAVSIM does: as a roadblock first, else as a connector. See pdm-scorer 2.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely

from drivefine_agent.data.maps import LaneRecord, Layer, Map, RoadblockRecord
from drivefine_agent.data.types import FloatArray
from drivefine_agent.errors import SceneError
from drivefine_agent.geometry.se2 import wrap_angle

CURRENT_BLOCK_HALF_SIDE_M = 1.0
MAX_HEADING_ERROR_RAD = np.pi / 4
MAX_DISPLACEMENT_M = 3.0
BACKWARD_SEARCH_DEPTH = 15
FORWARD_SEARCH_DEPTH = 30
NUM_FORWARD_TARGETS = 3
MIN_LOOP_OVERLAP_M2 = 1.0


@dataclass(frozen=True)
class Route:
    """Blocks and lanes of a route, both in driving order and without repetition."""

    blocks: dict[str, RoadblockRecord]
    lanes: dict[str, LaneRecord]


def block_lanes(map_: Map, block: RoadblockRecord) -> list[LaneRecord]:
    """The lanes of a roadblock, or the lane connectors of a roadblock connector, in the map's file order."""
    lanes = map_.lane_connectors if block.is_connector else map_.lanes
    return [lanes[lane_id] for lane_id in block.interior]


def neighbour_blocks(map_: Map, block: RoadblockRecord, forward: bool) -> list[RoadblockRecord]:
    """Blocks after (`forward`) or before a block; a roadblock's neighbours are connectors and vice versa."""
    ids = block.successors if forward else block.predecessors
    blocks = map_.roadblocks if block.is_connector else map_.roadblock_connectors
    return [blocks[block_id] for block_id in ids]


def load_route(map_: Map, block_ids: Iterable[str]) -> Route:
    """Look up the blocks of a route and their lanes; repeated ids count once.

    Raises:
      SceneError: if the route is empty or names a block that the map does not have.
    """
    blocks: dict[str, RoadblockRecord] = {}
    lanes: dict[str, LaneRecord] = {}
    for block_id in dict.fromkeys(block_ids):
        if block_id not in map_.roadblocks and block_id not in map_.roadblock_connectors:
            raise SceneError(
                f"every block of a route must be in the map, got id {block_id!r}, which is neither a"
                f" roadblock nor a connector of {map_.path}: check that logs and maps belong together"
            )
        block = map_.roadblock(block_id)
        blocks[block.id] = block
        for lane in block_lanes(map_, block):
            lanes[lane.id] = lane
    if not blocks:
        raise SceneError(
            "a scene needs a route to be scored, got no roadblock ids: filter with has_route=true"
        )
    if not lanes:
        raise SceneError(
            f"a route needs lanes, but its blocks {list(blocks)[:5]} have none in {map_.path}: check that "
            "logs and maps belong together"
        )
    return Route(blocks, lanes)


def nearest_vertex(lane: LaneRecord, pose: FloatArray) -> tuple[float, float]:
    """Distance [m] and absolute heading error [rad] between a pose (3,) and the nearest baseline vertex."""
    offset = lane.baseline - pose[:2]
    distance = np.sqrt((offset**2).sum(axis=-1))
    index = int(np.argmin(distance))
    return float(distance[index]), abs(float(wrap_angle(lane.headings[index] - pose[2])))


def current_block(map_: Map, pose: FloatArray, route_ids: Sequence[str]) -> tuple[RoadblockRecord, list[str]]:
    """The block the ego is in, and the ids of all candidates of the same quality.

    Args:
      map_: the map.
      pose: (3,) rear axle, global.
      route_ids: the route; a plausible block on it is preferred over any other.

    Returns:
      The chosen block and the ids of the list it was chosen from (an id may occur several times).
    """
    candidates = _blocks_around(map_, pose)
    on_route: list[tuple[float, RoadblockRecord]] = []
    off_route: list[tuple[float, RoadblockRecord]] = []
    by_displacement: list[tuple[float, RoadblockRecord]] = []
    for block in candidates:
        smallest = np.inf
        for lane in block_lanes(map_, block):
            displacement, heading_error = nearest_vertex(lane, pose)
            smallest = min(smallest, displacement)
            if heading_error < MAX_HEADING_ERROR_RAD and displacement < MAX_DISPLACEMENT_M:
                (on_route if block.id in route_ids else off_route).append((displacement, block))
        by_displacement.append((smallest, block))
    chosen = on_route or off_route or by_displacement
    _, best = min(chosen, key=lambda entry: entry[0])  # the first one on ties
    return best, [block.id for _, block in chosen]


def _blocks_around(map_: Map, pose: FloatArray) -> list[RoadblockRecord]:
    """Roadblocks, then connectors, within 1 m of the ego; if there are none, the nearest of each."""
    layers = ((Layer.ROADBLOCKS, map_.roadblocks), (Layer.ROADBLOCK_CONNECTORS, map_.roadblock_connectors))
    blocks = [
        records[id_]
        for layer, records in layers
        for id_ in map_.query(layer, pose[:2], CURRENT_BLOCK_HALF_SIDE_M)
    ]
    if not blocks:
        for layer, records in layers:
            nearest = map_.nearest(layer, pose[:2])
            if nearest is not None:
                blocks.append(records[nearest[0]])
    if not blocks:
        raise SceneError(f"a route needs roadblocks, but the map has none: {map_.path}; fetch it again")
    return blocks


def search_blocks(
    map_: Map, start: RoadblockRecord, target_ids: Iterable[str], forward: bool, max_depth: int
) -> list[RoadblockRecord] | None:
    """Breadth-first search over blocks; the path from `start` to the first target found, or None.

    NAVSIM's search has no visited set: a block is queued once per parent, and of several parents at one depth
    the last one counts. The same path is found here level by level, without the explosion: for every level
    the blocks are kept once in the order of their first visit (which target is met first) and once in the
    order of their last visit (which parent is the last).

    Args:
      map_: the map.
      start: first block, at depth 1.
      target_ids: ids to look for.
      forward: follow successors, otherwise predecessors.
      max_depth: deepest level that is looked at.

    Returns:
      Blocks from `start` to the target in order of the search, so against the driving direction if not
      `forward`.
    """
    targets = set(target_ids)
    first_order: dict[str, RoadblockRecord] = {start.id: start}
    last_order: dict[str, RoadblockRecord] = {start.id: start}
    parents: list[dict[str, RoadblockRecord]] = []  # parents[d][id]: parent of a block at depth d + 2
    for depth in range(1, max_depth + 1):
        found = next((block for block_id, block in first_order.items() if block_id in targets), None)
        if found is not None:
            return _walk_back(found, parents[: depth - 1])
        next_first: dict[str, RoadblockRecord] = {}
        for block in first_order.values():
            for neighbour in neighbour_blocks(map_, block, forward):
                next_first.setdefault(neighbour.id, neighbour)
        next_last: dict[str, RoadblockRecord] = {}
        level_parents: dict[str, RoadblockRecord] = {}
        for block in last_order.values():
            for neighbour in neighbour_blocks(map_, block, forward):
                next_last.pop(neighbour.id, None)
                next_last[neighbour.id] = neighbour
                level_parents[neighbour.id] = block
        if not next_first:
            return None
        parents.append(level_parents)
        first_order, last_order = next_first, next_last
    return None


def _walk_back(found: RoadblockRecord, parents: list[dict[str, RoadblockRecord]]) -> list[RoadblockRecord]:
    path = [found]
    for level in reversed(parents):
        path.append(level[path[-1].id])
    return path[::-1]


def correct_route(map_: Map, route: Route, pose: FloatArray) -> Route:
    """Repair a logged route: lead it to the ego, close its gaps, cut its loops (pdm-scorer 2.4).

    Args:
      map_: the map.
      route: the logged route.
      pose: (3,) rear axle, global.

    Returns:
      The route that NAVSIM scores with.
    """
    blocks = list(route.blocks.values())
    blocks = _start_at_ego(map_, blocks, pose)
    blocks = _close_gaps(map_, blocks)
    blocks = _cut_loop(blocks)
    return load_route(map_, [block.id for block in blocks])


def _start_at_ego(map_: Map, blocks: list[RoadblockRecord], pose: FloatArray) -> list[RoadblockRecord]:
    """If the ego is off the route, put the way to it in front, or else a way from the ego into the route."""
    route_ids = [block.id for block in blocks]
    start, candidate_ids = current_block(map_, pose, route_ids)
    if start.id in route_ids:
        return blocks
    backward = search_blocks(map_, blocks[0], candidate_ids, forward=False, max_depth=BACKWARD_SEARCH_DEPTH)
    if backward is not None:
        return backward[:0:-1] + blocks
    forward = search_blocks(
        map_, start, route_ids[:NUM_FORWARD_TARGETS], forward=True, max_depth=FORWARD_SEARCH_DEPTH
    )
    if forward is not None:
        return forward + blocks[route_ids.index(forward[-1].id) + 1 :]
    return blocks


def _close_gaps(map_: Map, blocks: list[RoadblockRecord]) -> list[RoadblockRecord]:
    """Insert the shortest connection where two consecutive blocks do not touch, if there is one."""
    closed = blocks[:1]
    for block, following in pairwise(blocks):
        if block.id not in following.predecessors:
            path = search_blocks(map_, block, [following.id], forward=True, max_depth=FORWARD_SEARCH_DEPTH)
            if path is not None:
                closed.extend(path[1:-1])
        closed.append(following)
    return closed


def _cut_loop(blocks: list[RoadblockRecord]) -> list[RoadblockRecord]:
    """End the route before the first connector that overlaps an earlier one; loops close in intersections."""
    seen: list[shapely.Polygon] = []
    for index, block in enumerate(blocks):
        if not block.is_connector:
            continue
        polygon = block.polygon
        if seen:
            overlaps = shapely.area(shapely.intersection(np.array(seen, dtype=object), polygon))
            if np.any(overlaps > MIN_LOOP_OVERLAP_M2):
                return blocks[:index]
        seen.append(polygon)
    return blocks
