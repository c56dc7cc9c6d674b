"""Lane keeping: the centre does not stay more than 0.5 m from the route's centreline for 2 s.

States whose centre is on an intersection are passed over, without resetting the count of states before them.

Shape letters: P proposals, S = 41 simulated states, N centreline vertices.
Source: pdm-scorer 4.8; NAVSIM v2.2, PDMScorer.
"""

from __future__ import annotations

import math

import numpy as np
import shapely
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.point_location import bounds_of
from drivefine_agent.scoring.types import FloatArray

MAX_DEVIATION_M = 0.5
NUM_STATES_TO_FAIL = 20
_TIE_M = 1e-9
_RUN_SEGMENTS = 8
_SLACK_M2 = 1e-6  # far above the rounding of squared distances that matter, far below what pruning needs


def lane_keeping(
    center: FloatArray, in_intersection: NDArray[np.bool_], centerline: FloatArray
) -> FloatArray:
    """Lane keeping of each proposal.

    Args:
      center: (P, S, 2) centre of the ego [m].
      in_intersection: (P, S) flags of `areas.ego_areas`.
      centerline: (N, 2) vertices [m].

    Returns:
      (P,) 0 where 20 states in a row, intersections left out, deviate by more than 0.5 m; else 1.
    """
    run = deviating_run(center, in_intersection, centerline).max(axis=1, initial=0)
    return np.where(run >= NUM_STATES_TO_FAIL, 0.0, 1.0)


def deviating_run(
    center: FloatArray, in_intersection: NDArray[np.bool_], centerline: FloatArray
) -> NDArray[np.int64]:
    """(P, S) how many states in a row deviate up to and including each; arguments as of `lane_keeping`."""
    distance = _distances(kernel_input(center), kernel_input(centerline))
    is_tie = np.abs(distance - MAX_DEVIATION_M) <= _TIE_M
    if is_tie.any():  # GEOS decides what rounding could
        distance[is_tie] = shapely.distance(shapely.points(center[is_tie]), shapely.LineString(centerline))
    deviates = distance > MAX_DEVIATION_M
    return np.asarray(_runs(kernel_input(deviates, np.bool_), kernel_input(in_intersection, np.bool_)))


@njit(cache=True, nogil=True)
def _runs(deviates, skipped):
    """(P, S) deviating states in a row up to each, of (P, S) flags."""
    num_proposals, num_states = deviates.shape
    runs = np.zeros((num_proposals, num_states), dtype=np.int64)
    for p in range(num_proposals):
        count = 0
        for t in range(num_states):
            if not skipped[p, t]:
                count = count + 1 if deviates[p, t] else 0
            runs[p, t] = count
    return runs


@njit(cache=True, nogil=True)
def _distances(points, line):
    """(P, S) distance of points (P, S, 2) from a polyline (N, 2).

    Runs of segments whose bounds are further away than the nearest segment so far are passed over; the run
    that was nearest to the point before comes first.
    """
    num_proposals, num_states = points.shape[:2]
    num_segments = line.shape[0] - 1
    num_runs = (num_segments + _RUN_SEGMENTS - 1) // _RUN_SEGMENTS
    bounds = np.empty((num_runs, 4))
    for r in range(num_runs):
        bounds[r] = bounds_of(line[r * _RUN_SEGMENTS : (r + 1) * _RUN_SEGMENTS + 1])
    out = np.empty((num_proposals, num_states))
    nearest_run = 0
    for p in range(num_proposals):
        for t in range(num_states):
            x, y = points[p, t, 0], points[p, t, 1]
            nearest_sq = np.inf
            start = nearest_run
            for i in range(num_runs):
                r = start if i == 0 else i - 1 if i <= start else i
                off_x = max(bounds[r, 0] - x, x - bounds[r, 2], 0.0)
                off_y = max(bounds[r, 1] - y, y - bounds[r, 3], 0.0)
                if off_x * off_x + off_y * off_y > nearest_sq + _SLACK_M2:
                    continue
                first, last = r * _RUN_SEGMENTS, min((r + 1) * _RUN_SEGMENTS, num_segments)
                square = _least_square_distance(x, y, line, first, last)
                if square < nearest_sq:
                    nearest_sq, nearest_run = square, r
            out[p, t] = math.sqrt(nearest_sq)
    return out


@njit(cache=True, nogil=True)
def _least_square_distance(x, y, line, first, last):
    """Of a point from the segments `first` to `last` - 1 of a polyline."""
    nearest_sq = np.inf
    for i in range(first, last):
        dx, dy = line[i + 1, 0] - line[i, 0], line[i + 1, 1] - line[i, 1]
        to_x, to_y = x - line[i, 0], y - line[i, 1]
        length_sq = dx * dx + dy * dy
        along = 0.0
        if length_sq > 0.0:
            along = min(1.0, max(0.0, (to_x * dx + to_y * dy) / length_sq))
        off_x, off_y = to_x - along * dx, to_y - along * dy
        nearest_sq = min(nearest_sq, off_x * off_x + off_y * off_y)
    return nearest_sq
