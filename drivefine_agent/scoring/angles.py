"""NAVSIM's ways with angles, for use inside compiled kernels.

Numba keys its on-disk cache by the file of the *calling* kernel only, so these functions must stay as they
are (or the `__pycache__` folders must go).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, inline="always")
def wrap_angle(angle_rad):
    """The angle in [-pi, pi], through atan2: errors, displacements and detections use this one."""
    return math.atan2(math.sin(angle_rad), math.cos(angle_rad))


@njit(cache=True, nogil=True, inline="always")
def principal_value(angle_rad):
    """The angle in [-pi, pi), through the modulo: trajectories and simulated headings use this one."""
    return (angle_rad + math.pi) % (2.0 * math.pi) - math.pi


@njit(cache=True, nogil=True)
def relative_angle(ego_pose, point):
    """Angle between the ego's heading and the way from its rear axle to a point [rad].

    NaN where rounding lifts the dot product above 1 (a point exactly along the heading) and where both
    coincide: such a point is neither ahead nor behind. NAVSIM's arccos is unguarded, and so is this
    (pdm-scorer 5.5).
    """
    dx, dy = point[0] - ego_pose[0], point[1] - ego_pose[1]
    norm = np.sqrt(dx * dx + dy * dy)
    if norm == 0.0:
        return np.nan
    dot = np.cos(ego_pose[2]) * (dx / norm) + np.sin(ego_pose[2]) * (dy / norm)
    if abs(dot) > 1.0:
        return np.nan
    return np.arccos(dot)
