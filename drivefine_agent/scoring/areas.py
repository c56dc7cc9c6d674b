"""Where the ego stands at each time: off the drivable area, across lanes, off the route, on an intersection.

A point counts as inside a polygon only strictly: a point on the boundary is outside. The compiled kernel
decides by the even-odd rule and hands every footprint that has a point within 1e-7 m of an edge to GEOS,
which decides exactly.

Shape letters: P proposals, S simulated states, M polygons.
Source: pdm-scorer 4.1; NAVSIM v1.1, PDMScorer's ego areas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.polygons import DrivablePolygons
from drivefine_agent.scoring.types import FloatArray, PolygonKind

EDGE_TOLERANCE_M = 1e-7

_BLOCK_EDGES = 16

_LANE = int(PolygonKind.LANE)
_LANE_CONNECTOR = int(PolygonKind.LANE_CONNECTOR)
_INTERSECTION = int(PolygonKind.INTERSECTION)
_CARPARK_AREA = int(PolygonKind.CARPARK_AREA)
_ROADBLOCK = int(PolygonKind.ROADBLOCK)

# Bits of the six points tested per state: four corners, the centre, the rear axle.
_CORNER_BITS = 0b001111
_CENTER_BIT = 0b010000
_REAR_AXLE_BIT = 0b100000


@dataclass(frozen=True)
class EgoAreas:
    """Flags (P, S) of each simulated state."""

    non_drivable: NDArray[np.bool_]
    """Some corner lies in no roadblock, intersection or car park."""
    multiple_lanes: NDArray[np.bool_]
    """Several lanes hold a corner and none holds all four."""
    off_route: NDArray[np.bool_]
    """The centre lies in no lane of the route (NAVSIM calls this "oncoming traffic")."""
    rear_axle_in_intersection: NDArray[np.bool_]
    """The rear axle lies in an intersection polygon."""
    center_in_intersection: NDArray[np.bool_]
    """The centre lies in an intersection polygon."""


def ego_areas(points: FloatArray, rear_axle: FloatArray, polygons: DrivablePolygons) -> EgoAreas:
    """Area flags of each simulated state.

    Args:
      points: (P, S, 5, 2) corners and centre of the ego (footprint_points) [m], global.
      rear_axle: (P, S, 2) [m], global.
      polygons: the drivable-area map.

    Returns:
      Flags (P, S).
    """
    tested = kernel_input(np.concatenate([points, rear_axle[..., None, :]], axis=-2))
    kind, on_route = kernel_input(polygons.kind, np.int64), kernel_input(polygons.on_route, np.bool_)
    flags, is_close = _area_flags(
        tested,
        kernel_input(polygons.xy),
        kernel_input(polygons.ring_offsets, np.int64),
        kernel_input(polygons.part_offsets, np.int64),
        kind,
        on_route,
    )
    if is_close.any():
        flags[is_close] = _exact_flags(tested[is_close], polygons)
    return EgoAreas(
        non_drivable=flags[..., 0],
        multiple_lanes=flags[..., 1],
        off_route=flags[..., 2],
        rear_axle_in_intersection=flags[..., 3],
        center_in_intersection=flags[..., 4],
    )


def _exact_flags(points: FloatArray, polygons: DrivablePolygons) -> NDArray[np.bool_]:
    """(U, 5) flags of U states with points (U, 6, 2), every point decided by GEOS."""
    masks = np.zeros((len(points), len(polygons.kind)), dtype=np.int64)
    low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    geometries = polygons.shapely_polygons
    bounds = shapely.bounds(geometries)
    near = (bounds[:, 0] <= high[0]) & (bounds[:, 2] >= low[0])
    near &= (bounds[:, 1] <= high[1]) & (bounds[:, 3] >= low[1])
    for m in np.flatnonzero(near):
        inside = shapely.contains_xy(geometries[m], points[..., 0], points[..., 1])  # (U, 6)
        masks[:, m] = inside @ (1 << np.arange(points.shape[1]))
    return _flags_of_masks(
        kernel_input(masks, np.int64),
        kernel_input(polygons.kind, np.int64),
        kernel_input(polygons.on_route, np.bool_),
    )


@njit(cache=True, nogil=True)
def _flags_of_masks(masks, kind, on_route):
    flags = np.empty((masks.shape[0], 5), dtype=np.bool_)
    for u in range(masks.shape[0]):
        _flags_of_state(masks[u], np.arange(masks.shape[1]), masks.shape[1], kind, on_route, flags[u])
    return flags


@njit(cache=True, nogil=True)
def _flags_of_state(masks, candidates, num_candidates, kind, on_route, flags):
    """The five flags of one state from the bit masks of the points inside each candidate polygon."""
    drivable_corners = 0
    lanes_touched = 0
    in_one_lane = False
    is_on_route = False
    in_intersection = False
    is_center_in_intersection = False
    for c in range(num_candidates):
        mask = masks[c]
        if mask == 0:
            continue
        m = candidates[c]
        corners = mask & _CORNER_BITS
        if kind[m] == _LANE or kind[m] == _LANE_CONNECTOR:
            if corners != 0:
                lanes_touched += 1
            if corners == _CORNER_BITS:
                in_one_lane = True
            if on_route[m] and mask & _CENTER_BIT:
                is_on_route = True
        elif kind[m] == _ROADBLOCK or kind[m] == _INTERSECTION or kind[m] == _CARPARK_AREA:
            drivable_corners |= corners
            if kind[m] == _INTERSECTION:
                in_intersection |= mask & _REAR_AXLE_BIT != 0
                is_center_in_intersection |= mask & _CENTER_BIT != 0
    flags[0] = drivable_corners != _CORNER_BITS
    flags[1] = lanes_touched > 1 and not in_one_lane
    flags[2] = not is_on_route
    flags[3] = in_intersection
    flags[4] = is_center_in_intersection


@njit(cache=True, nogil=True)
def _edge_blocks(xy, ring_offsets, part_offsets):
    """Runs of consecutive edges with common bounds, so that most edges are passed over sixteen at a time.

    Returns the blocks of each polygon (M + 1,), the first and last vertex of each block (B, 2), and its
    bounds (B, 3): least y, largest y, largest x.
    """
    num_polygons = part_offsets.shape[0] - 1
    most = xy.shape[0] // _BLOCK_EDGES + ring_offsets.shape[0]
    offsets = np.zeros(num_polygons + 1, dtype=np.int64)
    spans = np.empty((most, 2), dtype=np.int64)
    bounds = np.empty((most, 3))
    count = 0
    for m in range(num_polygons):
        for r in range(part_offsets[m], part_offsets[m + 1]):
            for first in range(ring_offsets[r], ring_offsets[r + 1] - 1, _BLOCK_EDGES):
                last = min(first + _BLOCK_EDGES, ring_offsets[r + 1] - 1)
                spans[count, 0], spans[count, 1] = first, last
                bounds[count, 0], bounds[count, 1], bounds[count, 2] = np.inf, -np.inf, -np.inf
                for v in range(first, last + 1):
                    bounds[count, 0] = min(bounds[count, 0], xy[v, 1])
                    bounds[count, 1] = max(bounds[count, 1], xy[v, 1])
                    bounds[count, 2] = max(bounds[count, 2], xy[v, 0])
                count += 1
        offsets[m + 1] = count
    return offsets, spans[:count], bounds[:count]


@njit(cache=True, nogil=True)
def _bounds_of(points):
    """Least x, least y, largest x, largest y of points (..., 2) given as (n, 2)."""
    x_low, y_low, x_high, y_high = np.inf, np.inf, -np.inf, -np.inf
    for k in range(points.shape[0]):
        x_low = min(x_low, points[k, 0])
        y_low = min(y_low, points[k, 1])
        x_high = max(x_high, points[k, 0])
        y_high = max(y_high, points[k, 1])
    return x_low, y_low, x_high, y_high


@njit(cache=True, nogil=True)
def _overlaps(boxes, m, x_low, y_low, x_high, y_high):
    return boxes[m, 0] < x_high and boxes[m, 2] > x_low and boxes[m, 1] < y_high and boxes[m, 3] > y_low


@njit(cache=True, nogil=True)
def _area_flags(points, xy, ring_offsets, part_offsets, kind, on_route):
    """Flags (P, S, 5) and, (P, S), whether a point was too close to an edge to decide them here."""
    num_proposals, num_states = points.shape[:2]
    num_polygons = part_offsets.shape[0] - 1
    flags = np.zeros((num_proposals, num_states, 5), dtype=np.bool_)
    is_close = np.zeros((num_proposals, num_states), dtype=np.bool_)

    boxes = np.empty((num_polygons, 4))
    for m in range(num_polygons):
        boxes[m] = _bounds_of(xy[ring_offsets[part_offsets[m]] : ring_offsets[part_offsets[m + 1]]])
    blocks, spans, bounds = _edge_blocks(xy, ring_offsets, part_offsets)

    near = np.empty(num_polygons, dtype=np.int64)
    candidates = np.empty(num_polygons, dtype=np.int64)
    masks = np.empty(num_polygons, dtype=np.int64)
    for p in range(num_proposals):
        # Polygons that this proposal can touch at all; then, per state, those that can hold one of its
        # points.
        x_low, y_low, x_high, y_high = _bounds_of(points[p].reshape(-1, 2))
        num_near = 0
        for m in range(num_polygons):
            if _overlaps(boxes, m, x_low, y_low, x_high, y_high):
                near[num_near] = m
                num_near += 1
        for t in range(num_states):
            state_points = points[p, t]
            x_low, y_low, x_high, y_high = _bounds_of(state_points)
            num_candidates = 0
            for c in range(num_near):
                m = near[c]
                if not _overlaps(boxes, m, x_low, y_low, x_high, y_high):
                    continue
                mask = 0
                for b in range(blocks[m], blocks[m + 1]):
                    if (
                        bounds[b, 0] > y_high + EDGE_TOLERANCE_M
                        or bounds[b, 1] < y_low - EDGE_TOLERANCE_M
                        or bounds[b, 2] < x_low - EDGE_TOLERANCE_M
                    ):
                        continue  # wholly above, below or to the left of all points: cannot matter
                    mask ^= _crossings(state_points, xy, spans[b, 0], spans[b, 1], x_low, y_low, y_high)
                    if mask < 0:
                        break
                if mask < 0:
                    is_close[p, t] = True
                    break
                candidates[num_candidates] = m
                masks[num_candidates] = mask
                num_candidates += 1
            if not is_close[p, t]:
                _flags_of_state(masks, candidates, num_candidates, kind, on_route, flags[p, t])
    return flags, is_close


@njit(cache=True, nogil=True)
def _crossings(points, xy, first, last, x_low, y_low, y_high):
    """Bit mask of points whose ray towards +x crosses the edges an odd number of times; -1 if one is close.

    The edges run between the vertices `first` to `last`; `x_low`, `y_low` and `y_high` bound the points.
    """
    mask = 0
    x_low -= EDGE_TOLERANCE_M
    y_low -= EDGE_TOLERANCE_M
    y_high += EDGE_TOLERANCE_M
    x2, y2 = xy[first, 0], xy[first, 1]
    for v in range(first + 1, last + 1):
        x1, y1 = x2, y2
        x2, y2 = xy[v, 0], xy[v, 1]
        if (y1 < y_low and y2 < y_low) or (y1 > y_high and y2 > y_high) or (x1 < x_low and x2 < x_low):
            continue
        edge_x, edge_y = x2 - x1, y2 - y1
        tolerance = EDGE_TOLERANCE_M * np.sqrt(edge_x * edge_x + edge_y * edge_y)
        for k in range(points.shape[0]):
            to_x, to_y = points[k, 0] - x1, points[k, 1] - y1
            if min(to_y, to_y - edge_y) > EDGE_TOLERANCE_M or max(to_y, to_y - edge_y) < -EDGE_TOLERANCE_M:
                continue
            cross = edge_x * to_y - edge_y * to_x  # > 0: the point is left of the directed edge
            if (
                abs(cross) <= tolerance
                and min(to_x, to_x - edge_x) <= EDGE_TOLERANCE_M
                and max(to_x, to_x - edge_x) >= -EDGE_TOLERANCE_M
            ):
                return -1
            if (y1 > points[k, 1]) != (y2 > points[k, 1]) and (cross > 0.0) == (edge_y > 0.0):
                mask ^= 1 << k
    return mask
