"""Corners and centroids of boxes with the rounding of nuPlan and GEOS, where the last bits count.

An object exactly ahead of the ego is or is not "ahead" by the rounding of an arccos argument (pdm-scorer 5.5), so the
scorer's boxes are computed in the order of operations of the originals. Elsewhere `geometry.boxes` will do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_LENGTH_SIGN = np.array([1.0, -1.0, -1.0, 1.0])  # front left, rear left, rear right, front right
_WIDTH_SIGN = np.array([1.0, 1.0, -1.0, -1.0])


def nuplan_box_corners(
    poses: FloatArray, length_m: FloatArray | float, width_m: FloatArray | float
) -> FloatArray:
    """Corners of boxes.

    Args:
      poses: (..., 3) x, y [m] of the centre, heading [rad].
      length_m: (...) along the heading [m].
      width_m: (...) across [m].

    Returns:
      (..., 4, 2) in the order of CornerIndex.

    Source: nuplan-devkit, OrientedBox.all_corners, which takes heading + pi/2 as the lateral direction.
    """
    heading = poses[..., 2, None]
    normal = heading + np.pi / 2.0
    lon = _LENGTH_SIGN * (np.asarray(length_m)[..., None] / 2.0)
    lat = _WIDTH_SIGN * (np.asarray(width_m)[..., None] / 2.0)
    corners = np.empty((*poses.shape[:-1], 4, 2))
    corners[..., 0] = poses[..., 0, None] + (lat * np.cos(normal) + lon * np.cos(heading))
    corners[..., 1] = poses[..., 1, None] + (lat * np.sin(normal) + lon * np.sin(heading))
    return corners


def geos_centroids(corners: FloatArray) -> FloatArray:
    """Centroids (..., 2) of quadrilaterals (..., 4, 2), bit for bit those of GEOS.

    Two triangles fan out from the first corner and are weighted by their areas.
    """
    base, second, third, fourth = (corners[..., corner, :] for corner in range(4))
    first_area = _twice_area(base, second, third)[..., None]
    second_area = _twice_area(base, third, fourth)[..., None]
    weighted = first_area * (base + second + third) + second_area * (base + third + fourth)
    return weighted / 3.0 / (first_area + second_area)


def _twice_area(a: FloatArray, b: FloatArray, c: FloatArray) -> FloatArray:
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (c[..., 0] - a[..., 0]) * (
        b[..., 1] - a[..., 1]
    )
