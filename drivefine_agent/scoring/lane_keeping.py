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
from drivefine_agent.scoring.types import FloatArray

MAX_DEVIATION_M = 0.5
NUM_STATES_TO_FAIL = 20
_TIE_M = 1e-9


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
    distance = _distances(kernel_input(center), kernel_input(centerline))
    is_tie = np.abs(distance - MAX_DEVIATION_M) <= _TIE_M
    if is_tie.any():  # GEOS decides what rounding could
        distance[is_tie] = shapely.distance(shapely.points(center[is_tie]), shapely.LineString(centerline))
    deviates = distance > MAX_DEVIATION_M
    return np.where(_longest_run(deviates, in_intersection) >= NUM_STATES_TO_FAIL, 0.0, 1.0)


def _longest_run(deviates: NDArray[np.bool_], skipped: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(P,) most deviating states in a row, of (P, S) flags."""
    count = np.zeros(len(deviates), dtype=np.int64)
    longest = count.copy()
    for t in range(deviates.shape[1]):
        count = np.where(skipped[:, t], count, np.where(deviates[:, t], count + 1, 0))
        longest = np.maximum(longest, count)
    return longest


@njit(cache=True, nogil=True)
def _distances(points, line):
    """(P, S) distance of points (P, S, 2) from a polyline (N, 2)."""
    num_proposals, num_states = points.shape[:2]
    out = np.empty((num_proposals, num_states))
    for p in range(num_proposals):
        for t in range(num_states):
            x, y = points[p, t, 0], points[p, t, 1]
            nearest_sq = np.inf
            for i in range(line.shape[0] - 1):
                dx, dy = line[i + 1, 0] - line[i, 0], line[i + 1, 1] - line[i, 1]
                to_x, to_y = x - line[i, 0], y - line[i, 1]
                length_sq = dx * dx + dy * dy
                along = 0.0
                if length_sq > 0.0:
                    along = min(1.0, max(0.0, (to_x * dx + to_y * dy) / length_sq))
                off_x, off_y = to_x - along * dx, to_y - along * dy
                nearest_sq = min(nearest_sq, off_x * off_x + off_y * off_y)
            out[p, t] = math.sqrt(nearest_sq)
    return out
