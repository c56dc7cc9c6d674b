"""Where the ego stands at each time: off the drivable area, across lanes, off the route, on an intersection.

A point counts as inside a polygon only strictly: a point on the boundary is outside. The compiled kernel
(`point_location`) hands every footprint that has a point within 1e-7 m of an edge to GEOS, which decides
exactly.

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
from drivefine_agent.scoring.point_location import (
    OUTSIDE,
    TOO_CLOSE,
    UNKNOWN,
    cell_of,
    cells_over,
    crossings,
    even_odd,
    look_at_cell,
    reference_point,
)
from drivefine_agent.scoring.polygons import DrivablePolygons
from drivefine_agent.scoring.types import FloatArray, PolygonKind

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
    flags, is_close = _area_flags(tested, polygons.table, kind, on_route)
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
def _area_flags(points, table, kind, on_route):
    """Flags (P, S, 5) and, (P, S), whether a point was too close to an edge to decide them here."""
    num_proposals, num_states, num_points = points.shape[:3]
    flags = np.zeros((num_proposals, num_states, 5), dtype=np.bool_)
    is_close = np.zeros((num_proposals, num_states), dtype=np.bool_)
    cells, entries, near = cells_over(points.reshape(-1, 2), table)
    # Unpacked, as numba counts references at every access to a field.
    x_low, y_low, size, num_x, num_y, entries_of = cells
    held, edges, _ = entries
    xy, _, blocks, block_vertices, block_bounds = table

    # The polygons that hold a point of the present state, and which points each of them holds.
    candidates = np.empty(kind.shape[0], dtype=np.int64)
    masks = np.empty(kind.shape[0], dtype=np.int64)
    place = np.full(kind.shape[0], -1, dtype=np.int64)
    for p in range(num_proposals):
        for t in range(num_states):
            num_candidates = 0
            for k in range(num_points):
                x, y = points[p, t, k, 0], points[p, t, k, 1]
                column, row = cell_of(x, y, x_low, y_low, size, num_x, num_y)
                if column < 0:
                    continue
                if entries_of[row, column, 0] < 0:
                    entries = look_at_cell(column, row, cells, entries, near, table)
                    held, edges, _ = entries
                reference_x, reference_y = reference_point(column, row, x_low, y_low, size)
                for e in range(entries_of[row, column, 0], entries_of[row, column, 1]):
                    m, inside = held[e, 0], held[e, 1]
                    if held[e, 2] < held[e, 3]:  # the polygon's edges come into the cell
                        crossed = crossings(x, y, reference_x, reference_y, edges, held[e, 2], held[e, 3])
                        if inside == UNKNOWN or crossed < 0:
                            inside = even_odd(x, y, m, xy, blocks, block_vertices, block_bounds)
                        else:
                            inside ^= crossed & 1
                    if inside == OUTSIDE:
                        continue
                    is_close[p, t] |= inside == TOO_CLOSE
                    if place[m] < 0:
                        place[m] = num_candidates
                        candidates[num_candidates], masks[num_candidates] = m, 0
                        num_candidates += 1
                    masks[place[m]] |= 1 << k
            _flags_of_state(masks, candidates, num_candidates, kind, on_route, flags[p, t])
            for c in range(num_candidates):
                place[candidates[c]] = -1
    return flags, is_close
