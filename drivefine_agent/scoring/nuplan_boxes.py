"""Corners and centroids of boxes with the rounding of nuPlan and GEOS, where the last bits count.

An object exactly ahead of the ego is or is not "ahead" by the rounding of an arccos argument (pdm-scorer
5.5), so the scorer's boxes are computed in the order of operations of the originals. Elsewhere
`geometry.boxes` will do.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.scoring.kernel_arrays import kernel_input

FloatArray = NDArray[np.float64]


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
    lead = poses.shape[:-1]
    flat = np.array(poses, dtype=np.float64).reshape(-1, 3)
    normal = flat[:, 2] + np.pi / 2.0
    # numpy's cosine, like nuPlan's: that of the C library differs in the last bit now and then
    corners = _corners(
        flat,
        np.cos(flat[:, 2]),
        np.sin(flat[:, 2]),
        np.cos(normal),
        np.sin(normal),
        np.full(lead, length_m, dtype=np.float64).reshape(-1),
        np.full(lead, width_m, dtype=np.float64).reshape(-1),
    )
    return corners.reshape(*lead, 4, 2)


@njit(cache=True, nogil=True)
def _corners(poses, forward_x, forward_y, left_x, left_y, length, width):
    corners = np.empty((len(poses), 4, 2))
    for i in range(len(poses)):
        for corner in range(4):
            lon = length[i] / 2.0 if corner == 0 or corner == 3 else -length[i] / 2.0
            lat = width[i] / 2.0 if corner < 2 else -width[i] / 2.0
            corners[i, corner, 0] = poses[i, 0] + (lat * left_x[i] + lon * forward_x[i])
            corners[i, corner, 1] = poses[i, 1] + (lat * left_y[i] + lon * forward_y[i])
    return corners


def geos_centroids(corners: FloatArray) -> FloatArray:
    """Centroids (..., 2) of quadrilaterals (..., 4, 2), bit for bit those of GEOS.

    Two triangles fan out from the first corner and are weighted by their areas.
    """
    flat = kernel_input(corners).reshape(-1, 4, 2)
    return _centroids(kernel_input(flat)).reshape(*corners.shape[:-2], 2)


@njit(cache=True, nogil=True)
def _centroids(corners):
    centroids = np.empty((len(corners), 2))
    for i in range(len(corners)):
        box = corners[i]
        first_area = _twice_area(box[0], box[1], box[2])
        second_area = _twice_area(box[0], box[2], box[3])
        for axis in range(2):
            if first_area + second_area == 0.0:  # a box without area; GEOS falls back to its outline
                centroids[i, axis] = (box[0, axis] + box[2, axis]) / 2.0
                continue
            weighted = first_area * (box[0, axis] + box[1, axis] + box[2, axis])
            weighted += second_area * (box[0, axis] + box[2, axis] + box[3, axis])
            centroids[i, axis] = weighted / 3.0 / (first_area + second_area)
    return centroids


@njit(cache=True, nogil=True)
def _twice_area(a, b, c):
    return (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
