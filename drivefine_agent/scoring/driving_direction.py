"""Driving direction compliance: how far the ego travels off the route within about one second.

Shape letters: P proposals, S simulated states.
Source: pdm-scorer 4.4; NAVSIM v1.1, PDMScorer. Reported only: its weight in the v1.1 score is 0.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray

WINDOW_INTERVALS = 10  # the sum runs over 11 step lengths, 1.1 s
COMPLIANT_BELOW_M = 2.0
VIOLATED_FROM_M = 6.0


def driving_direction_compliance(center: FloatArray, off_route: NDArray[np.bool_]) -> FloatArray:
    """Compliance of each proposal: 1, 0.5 or 0.

    Args:
      center: (P, S, 2) centre of the ego [m].
      off_route: (P, S) flags of `areas.ego_areas`.

    Returns:
      (P,) 1 if less than 2 m are driven off the route in any window, 0.5 below 6 m, else 0.
    """
    distance = off_route_distance(center, off_route).max(axis=1, initial=0.0)
    return np.where(distance < COMPLIANT_BELOW_M, 1.0, np.where(distance < VIOLATED_FROM_M, 0.5, 0.0))


def off_route_distance(center: FloatArray, off_route: NDArray[np.bool_]) -> FloatArray:
    """(P, S) way driven off the route in the window that ends with each state [m]; arguments as above."""
    return np.asarray(_windows(kernel_input(center), kernel_input(off_route, np.bool_)))


@njit(cache=True, nogil=True)
def _windows(center, off_route):
    num_proposals, num_states, _ = center.shape
    windows = np.zeros((num_proposals, num_states))
    length = np.zeros(num_states)
    for p in range(num_proposals):
        for t in range(1, num_states):
            dx = center[p, t, 0] - center[p, t - 1, 0]
            dy = center[p, t, 1] - center[p, t - 1, 1]
            length[t] = np.sqrt(dx * dx + dy * dy) if off_route[p, t] else 0.0
        for t in range(num_states):
            total = 0.0
            for i in range(max(0, t - WINDOW_INTERVALS), t + 1):
                total += length[i]
            windows[p, t] = total
    return windows
