"""The ground the ego vehicle covers in each simulated state.

Shape letters: P proposals, S simulated states.
Source: pdm-scorer 4.0; NAVSIM v1.1, PDM utils/pdm_array_representation.py.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from drivefine_agent.constants import EGO_LENGTH_M, EGO_REAR_AXLE_TO_CENTER_M, EGO_WIDTH_M
from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray

CENTER = 4  # position of the centre behind the four corners (geometry.indices.CornerIndex)
HALF_LENGTH_M = EGO_LENGTH_M / 2.0
HALF_WIDTH_M = EGO_WIDTH_M / 2.0


def footprint_points(states: FloatArray) -> FloatArray:
    """Corners and centre of the ego box.

    Args:
      states: (P, S, 3) or more columns: rear axle x, y [m], heading [rad], global.

    Returns:
      (P, S, 5, 2) front left, rear left, rear right, front right (CornerIndex), centre [m], global.
    """
    return _footprint_points(kernel_input(np.asarray(states)[..., :3]))


@njit(cache=True, nogil=True)
def _footprint_points(poses):
    num_proposals, num_states, _ = poses.shape
    points = np.empty((num_proposals, num_states, 5, 2))
    for p in range(num_proposals):
        for t in range(num_states):
            heading = poses[p, t, 2]
            cos_h, sin_h = math.cos(heading), math.sin(heading)
            cos_left, sin_left = math.cos(heading + math.pi / 2.0), math.sin(heading + math.pi / 2.0)
            x = poses[p, t, 0] + EGO_REAR_AXLE_TO_CENTER_M * cos_h
            y = poses[p, t, 1] + EGO_REAR_AXLE_TO_CENTER_M * sin_h
            for corner in range(4):
                lon = HALF_LENGTH_M if corner in (0, 3) else -HALF_LENGTH_M
                lat = HALF_WIDTH_M if corner in (0, 1) else -HALF_WIDTH_M
                points[p, t, corner, 0] = x + (lat * cos_left + lon * cos_h)
                points[p, t, corner, 1] = y + (lat * sin_left + lon * sin_h)
            points[p, t, 4, 0] = x
            points[p, t, 4, 1] = y
    return points
