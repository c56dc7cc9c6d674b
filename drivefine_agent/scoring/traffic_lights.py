"""Traffic light compliance: no part of the ego touches a lane connector of the route while it is red.

There is no exemption for standing in it from the start, nor for entering before the light changed.

A kernel decides where a corner of the ego is clearly inside, or the whole box clearly off, GEOS the rest.

Shape letters: P proposals, S = 41 simulated states, L lane connectors.
Source: pdm-scorer 2.8 and 4.5; NAVSIM v2.2, PDMScorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.point_location import (
    EDGE_TOLERANCE_M,
    INSIDE,
    OUTSIDE,
    TOO_CLOSE,
    PolygonTable,
    even_odd,
    overlaps,
    polygon_table,
)
from drivefine_agent.scoring.types import FloatArray


@dataclass(frozen=True)
class RedLights:
    """The lane connectors that are red at some time."""

    polygons: NDArray[np.object_]
    """(L,) shapely polygons, global."""
    is_red: NDArray[np.bool_]
    """(T, L) at each sample of 0.1 s."""

    @classmethod
    def none(cls, num_samples: int) -> RedLights:
        """No light is ever red."""
        return cls(np.zeros(0, dtype=object), np.zeros((num_samples, 0), dtype=bool))

    @classmethod
    def always(cls, polygons: Sequence[shapely.Polygon], num_samples: int) -> RedLights:
        """Lights that stay red, as the reference planner believes."""
        array = np.empty(len(polygons), dtype=object)
        array[:] = polygons
        return cls(array, np.ones((num_samples, len(polygons)), dtype=bool))

    @cached_property
    def table(self) -> PolygonTable:
        """The polygons as the kernel takes them."""
        parts, light_of_part = shapely.get_parts(self.polygons, return_index=True)
        rings, part_of_ring = shapely.get_rings(parts, return_index=True)
        xy, ring_of_vertex = shapely.get_coordinates(rings, return_index=True)
        table: PolygonTable = polygon_table(
            kernel_input(xy),
            _offsets(ring_of_vertex, len(rings)),
            _offsets(light_of_part[part_of_ring], len(self.polygons)),
        )
        return table


def _offsets(group: NDArray[np.int64], num_groups: int) -> NDArray[np.int64]:
    """(num_groups + 1,) slices of sorted group numbers (n,)."""
    return kernel_input(np.searchsorted(group, np.arange(num_groups + 1)), np.int64)


def traffic_light_compliance(points: FloatArray, lights: RedLights) -> FloatArray:
    """Compliance of each proposal.

    Args:
      points: (P, S, 4, 2) corners of the ego [m], global, in the order of CornerIndex; or more points.
      lights: with at least S samples.

    Returns:
      (P,) 0 where the ego touches a red connector in any state, else 1.
    """
    if not len(lights.polygons) or not len(points):
        return np.ones(len(points))
    given = kernel_input(points)
    score, undecided = _compliance(given, kernel_input(lights.is_red, np.bool_), lights.table)
    undecided = undecided[score[undecided[:, 0]] > 0.0]
    if len(undecided):
        p, t, light = undecided.T
        touches = shapely.intersects(lights.polygons[light], shapely.polygons(given[p, t, :4]))
        score[p[touches]] = 0.0
    return score


def red_light_contacts(corners: FloatArray, lights: RedLights) -> NDArray[np.int64]:
    """(C, 3) proposal, state and light of every contact with a red connector, all by GEOS, for explanations.

    Arguments as of `traffic_light_compliance`.
    """
    if not len(lights.polygons) or not len(corners):
        return np.zeros((0, 3), dtype=np.int64)
    low, high = corners.min(axis=2), corners.max(axis=2)  # (P, S, 2)
    bounds = shapely.bounds(lights.polygons)  # (L, 4)
    near = (bounds[:, 0] <= high[..., None, 0]) & (bounds[:, 2] >= low[..., None, 0])
    near &= (bounds[:, 1] <= high[..., None, 1]) & (bounds[:, 3] >= low[..., None, 1])
    p, t, light = np.nonzero(near & lights.is_red[: corners.shape[1]])
    touches = shapely.intersects(shapely.polygons(corners[p, t]), lights.polygons[light])
    return np.stack([p, t, light], axis=1)[touches]


@njit(cache=True, nogil=True)
def _compliance(points, is_red, table):
    """(P,) scores for certain, and (U, 3) proposal, state and light that are left to GEOS."""
    num_proposals, num_states = points.shape[:2]
    score = np.ones(num_proposals)
    undecided = np.empty((16, 3), dtype=np.int64)
    num_undecided = 0
    _, bounds, _, _, _ = table  # unpacked, as numba counts references at every access to a field
    near = np.empty(is_red.shape[1], dtype=np.int64)
    for p in range(num_proposals):
        num_near = 0
        x_low, y_low, x_high, y_high = _bounds(points, p, 0, num_states)
        for m in range(is_red.shape[1]):
            if overlaps(bounds, m, x_low, y_low, x_high, y_high):
                near[num_near] = m
                num_near += 1
        for t in range(num_states if num_near > 0 else 0):
            x_low, y_low, x_high, y_high = _bounds(points, p, t, t + 1)
            for n in range(num_near):
                m = near[n]
                if not is_red[t, m] or not overlaps(bounds, m, x_low, y_low, x_high, y_high):
                    continue
                answer = _touches(points[p, t, :4], x_low, y_low, x_high, y_high, m, table)
                if answer == INSIDE:
                    score[p] = 0.0
                    break
                if answer == TOO_CLOSE:
                    if num_undecided == undecided.shape[0]:
                        undecided = np.concatenate((undecided, undecided))
                    undecided[num_undecided, 0], undecided[num_undecided, 1] = p, t
                    undecided[num_undecided, 2] = m
                    num_undecided += 1
            if score[p] == 0.0:
                break
    return score, undecided[:num_undecided]


@njit(cache=True, nogil=True)
def _bounds(points, p, first, stop):
    """Least x and y, largest x and y of the corners of a proposal in some states."""
    x_low, y_low, x_high, y_high = np.inf, np.inf, -np.inf, -np.inf
    for t in range(first, stop):
        for corner in range(4):
            x, y = points[p, t, corner, 0], points[p, t, corner, 1]
            x_low, y_low, x_high, y_high = min(x_low, x), min(y_low, y), max(x_high, x), max(y_high, y)
    return x_low, y_low, x_high, y_high


@njit(cache=True, nogil=True)
def _touches(corners, x_low, y_low, x_high, y_high, m, table):
    """INSIDE where a corner is in polygon m, OUTSIDE where the box is off it, TOO_CLOSE for GEOS to tell."""
    xy, _, blocks, block_vertices, block_bounds = table
    has_edges = False  # in the bounds of the box; without, one corner speaks for all
    for b in range(blocks[m], blocks[m + 1]):
        has_edges |= overlaps(block_bounds, b, x_low, y_low, x_high, y_high)
    is_close = False
    for corner in range(4 if has_edges else 1):
        x, y = corners[corner, 0], corners[corner, 1]
        answer = even_odd(x, y, m, xy, blocks, block_vertices, block_bounds)
        if answer == INSIDE:
            return INSIDE
        is_close |= answer == TOO_CLOSE
    if is_close:
        return TOO_CLOSE
    for b in range(blocks[m], blocks[m + 1]):
        if has_edges and overlaps(block_bounds, b, x_low, y_low, x_high, y_high):
            for v in range(block_vertices[b, 0], block_vertices[b, 1]):
                if not _is_off(corners, xy[v, 0], xy[v, 1], xy[v + 1, 0], xy[v + 1, 1]):
                    return TOO_CLOSE
    return OUTSIDE


@njit(cache=True, nogil=True)
def _is_off(corners, ax, ay, bx, by):
    """Whether a side of the box, or the segment ab itself, surely separates the two."""
    for corner in range(4):
        x, y = corners[corner, 0], corners[corner, 1]
        to_x, to_y = corners[(corner + 1) % 4, 0] - x, corners[(corner + 1) % 4, 1] - y
        a_side, b_side = to_x * (ay - y) - to_y * (ax - x), to_x * (by - y) - to_y * (bx - x)
        if max(a_side, b_side) < -EDGE_TOLERANCE_M * (abs(to_x) + abs(to_y)):
            return True  # the corners run counter-clockwise: to the right of a side is outside
    to_x, to_y = bx - ax, by - ay
    lowest, highest = np.inf, -np.inf
    for corner in range(4):
        side = to_x * (corners[corner, 1] - ay) - to_y * (corners[corner, 0] - ax)
        lowest, highest = min(lowest, side), max(highest, side)
    tolerance = EDGE_TOLERANCE_M * (abs(to_x) + abs(to_y))
    return lowest > tolerance or highest < -tolerance
