"""From a route to the centreline: starting lane, shortest lane path, and the path to measure along.

See pdm-scorer 2.5. N centreline vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import shapely
import shapely.ops
from numba import njit

from drivefine_agent.data.maps import LaneRecord, Map
from drivefine_agent.data.types import FloatArray
from drivefine_agent.errors import SceneError
from drivefine_agent.geometry.se2 import wrap_angle
from drivefine_agent.scoring.drivable_map import DrivableMap
from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.route import Route, nearest_vertex

MAX_ROUTE_BLOCKS = 30
MIN_ARC_LENGTH_M = 1e-5


@dataclass(frozen=True)
class Path:
    """A polyline with headings that can be measured along (NAVSIM's PDMPath)."""

    poses: FloatArray
    """(N, 3) vertices; headings unwrapped along the path."""
    arc_length: FloatArray
    """(N,) cumulative chord length [m]."""

    @classmethod
    def from_poses(cls, poses: FloatArray) -> Path:
        """A path through poses (N, 3).

        Raises:
          SceneError: if there are fewer than two vertices or the path has no length.
        """
        poses = np.array(poses, dtype=np.float64)
        if len(poses) < 2:
            raise SceneError(
                f"a centreline (of lane baselines) needs at least 2 vertices, got {len(poses)}: check the "
                "map's baselines"
            )
        poses[:, 2] = np.unwrap(poses[:, 2])
        chords = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1)
        arc_length = np.cumsum(np.append(0.0, chords))
        if not arc_length[-1] > MIN_ARC_LENGTH_M:
            raise SceneError(
                f"a centreline needs a length, got {arc_length[-1]} m: check the map's baselines"
            )
        return cls(poses, arc_length)

    @property
    def length(self) -> float:
        """[m]."""
        return float(self.arc_length[-1])

    @cached_property
    def linestring(self) -> shapely.LineString:
        """The vertices as a shapely line."""
        line = shapely.linestrings(self.poses[:, :2])
        shapely.prepare(line)
        return line

    def project(self, points: Any) -> Any:
        """Arc length [m] of the nearest point of the path, for shapely points of any array shape."""
        return shapely.line_locate_point(self.linestring, points)

    def interpolate(self, arc_length: FloatArray) -> FloatArray:
        """Poses (..., 3) at arc lengths (...,) [m]; clipped to the path, headings wrapped, NaN becomes 0.

        The interpolation rule is that of scipy's interp1d (pdm-scorer 5.3): a query on a vertex is evaluated
        at the end of the segment before it.
        """
        queries = np.asarray(arc_length, dtype=np.float64)
        poses = poses_along(self.arc_length[None], self.poses[None], queries.reshape(1, -1))
        return poses.reshape(*queries.shape, 3)

    def substring(self, start_m: float, end_m: float) -> Any:
        """The vertices between two arc lengths, or the exact piece if fewer than two lie between."""
        start_m = float(np.clip(start_m, 0.0, self.length))
        end_m = float(np.clip(end_m, 0.0, self.length))
        between = (start_m <= self.arc_length) & (self.arc_length <= end_m)
        vertices = self.poses[between, :2]
        if len(vertices) > 1:
            return shapely.LineString(vertices)
        return shapely.ops.substring(self.linestring, start_m, end_m)

    def shifted(self, offset_m: float) -> Path:
        """The path with every vertex moved sideways; positive is left. Headings stay."""
        if offset_m == 0.0:
            return self
        normal = self.poses[:, 2] + np.pi / 2
        poses = self.poses.copy()
        poses[:, 0] += np.cos(normal) * offset_m
        poses[:, 1] += np.sin(normal) * offset_m
        return Path.from_poses(poses)


def poses_along(arc_lengths: FloatArray, vertices: FloatArray, queries: FloatArray) -> FloatArray:
    """`Path.interpolate` on B paths of N vertices each.

    Args:
      arc_lengths: (B, N) of the vertices [m].
      vertices: (B, N, 3) poses, headings unwrapped along each path.
      queries: (B, M) arc lengths [m].

    Returns:
      (B, M, 3).
    """
    poses = _poses_along(kernel_input(arc_lengths), kernel_input(vertices), kernel_input(queries))
    poses[..., 2] = wrap_angle(poses[..., 2])  # by numpy's arctan2: another one differs in the last bit
    return poses


@njit(cache=True, nogil=True, error_model="numpy")
def _poses_along(arc_lengths, vertices, queries):
    """`poses_along` with headings not wrapped yet."""
    num_paths, num_queries = queries.shape
    last = arc_lengths.shape[1] - 1
    poses = np.empty((num_paths, num_queries, 3))
    for path in range(num_paths):
        along = arc_lengths[path]
        for q in range(num_queries):
            query = queries[path, q]
            if query < MIN_ARC_LENGTH_M:
                query = MIN_ARC_LENGTH_M
            if query > along[last]:
                query = along[last]
            high = min(max(np.searchsorted(along, query), 1), last)
            start, end = vertices[path, high - 1], vertices[path, high]
            span, offset = along[high] - along[high - 1], query - along[high - 1]
            for field in range(3):
                value = (end[field] - start[field]) / span * offset + start[field]
                poses[path, q, field] = 0.0 if np.isnan(value) else value
    return poses


def starting_lane(
    route: Route, drivable_map: DrivableMap, pose: FloatArray, footprint: shapely.Polygon
) -> LaneRecord:
    """The lane of the route that the ego is in, or the nearest one.

    Args:
      route: the corrected route.
      drivable_map: its tree answers in the order that decides ties.
      pose: (3,) rear axle, global.
      footprint: polygon of the ego; its centroid is the ego's centre.
    """
    best: LaneRecord | None = None
    smallest_error = np.inf
    for index in drivable_map.tree.query(shapely.Point(pose[0], pose[1]), predicate="intersects"):
        lane = route.lanes.get(drivable_map.ids[index])
        if lane is None:
            continue
        _, heading_error = nearest_vertex(lane, pose)
        if heading_error < smallest_error:
            best, smallest_error = lane, heading_error
    return best if best is not None else _closest_lane(route, footprint)


def _closest_lane(route: Route, footprint: shapely.Polygon) -> LaneRecord:
    center = footprint.centroid
    best: LaneRecord | None = None
    smallest_distance = np.inf
    for lane in route.lanes.values():
        if lane.polygon.contains(center):
            return lane
        distance = lane.polygon.distance(footprint)
        if distance < smallest_distance:
            best, smallest_distance = lane, distance
    if best is None:
        raise SceneError(
            "no lane of the route has a finite distance to the ego: check the map's lane polygons"
        )
    return best


def shortest_lane_path(map_: Map, route: Route, start: LaneRecord) -> list[LaneRecord]:
    """Dijkstra over the lanes of the route, from the starting lane to the last block within reach.

    Entering a lane costs its length, and the start costs 1. If the last block is not reached, the path ends
    at the cheapest of the deepest lanes that were expanded.
    """
    block_ids = list(route.blocks)
    start_index = block_ids.index(start.roadblock_id) if start.roadblock_id in route.blocks else 0
    target_id = block_ids[start_index : start_index + MAX_ROUTE_BLOCKS][-1]

    parents: dict[str, LaneRecord | None] = {start.id: None}
    frontier: dict[str, tuple[float, int, LaneRecord]] = {
        start.id: (1.0, 1, start)
    }  # in the order of insertion
    expanded: dict[str, tuple[float, int, LaneRecord]] = {}
    while frontier:
        lane_id = min(frontier, key=lambda id_: frontier[id_][0])
        cost, depth, lane = frontier.pop(lane_id)
        if lane.roadblock_id == target_id:
            return _lane_path(lane, parents)
        expanded[lane_id] = (cost, depth, lane)
        for successor in _successors(map_, lane):
            if successor.id not in route.lanes or successor.id in expanded:
                continue
            new_cost = cost + successor.length
            if successor.id not in frontier or new_cost < frontier[successor.id][0]:
                frontier[successor.id] = (new_cost, depth + 1, successor)
                parents[successor.id] = lane
    deepest = max(depth for _, depth, _ in expanded.values())
    _, _, end = min((entry for entry in expanded.values() if entry[1] == deepest), key=lambda entry: entry[0])
    return _lane_path(end, parents)


def _successors(map_: Map, lane: LaneRecord) -> list[LaneRecord]:
    lanes = map_.lanes if lane.is_connector else map_.lane_connectors
    return [lanes[lane_id] for lane_id in lane.successors]


def _lane_path(end: LaneRecord, parents: dict[str, LaneRecord | None]) -> list[LaneRecord]:
    path = [end]
    while (parent := parents[path[-1].id]) is not None:
        path.append(parent)
    return path[::-1]


def route_centerline(map_: Map, route: Route, start: LaneRecord) -> Path:
    """The centreline of the route: whole baselines from the starting lane on, junction vertices twice."""
    lanes = shortest_lane_path(map_, route, start)
    poses = [np.column_stack([lane.baseline, lane.headings]) for lane in lanes]
    return Path.from_poses(np.concatenate(poses))
