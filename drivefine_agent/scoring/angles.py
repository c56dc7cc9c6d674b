"""The two ways NAVSIM wraps an angle, for use inside compiled kernels.

Numba keys its on-disk cache by the file of the *calling* kernel only, so these two functions must stay as
they are.
"""

from __future__ import annotations

import math

from numba import njit


@njit(cache=True, nogil=True, inline="always")
def wrap_angle(angle_rad):
    """The angle in [-pi, pi], through atan2: errors, displacements and detections use this one."""
    return math.atan2(math.sin(angle_rad), math.cos(angle_rad))


@njit(cache=True, nogil=True, inline="always")
def principal_value(angle_rad):
    """The angle in [-pi, pi), through the modulo: trajectories and simulated headings use this one."""
    return (angle_rad + math.pi) % (2.0 * math.pi) - math.pi
