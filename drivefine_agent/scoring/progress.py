"""Ego progress: metres along the route's centreline, before normalisation.

Shape letters: P proposals, S simulated states, N centreline vertices.
Source: pdm-scorer 4.6; NAVSIM v1.1, PDMScorer; the projection is GEOS's linear referencing.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray


def raw_progress(center: FloatArray, centerline: FloatArray) -> FloatArray:
    """Progress of each proposal along the centreline.

    Args:
      center: (P, S, 2) centre of the ego [m].
      centerline: (N, 2) vertices [m].

    Returns:
      (P,) arc length between the projections of the last and the first centre [m], at least 0.
    """
    line = kernel_input(centerline)
    start = _project(kernel_input(center[:, 0]), line)
    end = _project(kernel_input(center[:, -1]), line)
    return np.maximum(end - start, 0.0)


def project(points: FloatArray, centerline: FloatArray) -> FloatArray:
    """(P,) arc length of the centreline's point nearest to each of `points` (P, 2) [m]; first on ties."""
    return _project(kernel_input(points), kernel_input(centerline))


@njit(cache=True, nogil=True)
def _project(points, line):
    num_points, num_segments = points.shape[0], line.shape[0] - 1
    out = np.zeros(num_points)
    for p in range(num_points):
        px, py = points[p, 0], points[p, 1]
        if p > 0 and px == points[p - 1, 0] and py == points[p - 1, 1]:
            out[p] = out[p - 1]  # all proposals start at the same place
            continue
        nearest = np.inf
        travelled = 0.0
        for i in range(num_segments):
            ax, ay = line[i, 0], line[i, 1]
            dx, dy = line[i + 1, 0] - ax, line[i + 1, 1] - ay
            length_sq = dx * dx + dy * dy
            length = math.sqrt(length_sq)
            along = 0.0
            if length_sq > 0.0:
                along = ((px - ax) * dx + (py - ay) * dy) / length_sq
            if along <= 0.0:
                along = 0.0
                distance = math.sqrt((px - ax) ** 2 + (py - ay) ** 2)
            elif along >= 1.0:
                along = 1.0
                distance = math.sqrt((px - line[i + 1, 0]) ** 2 + (py - line[i + 1, 1]) ** 2)
            else:
                distance = abs(((ay - py) * dx - (ax - px) * dy) / length_sq) * length
            if distance < nearest:
                nearest = distance
                out[p] = travelled + along * length
            travelled += length
    return out
