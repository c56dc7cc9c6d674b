"""Oriented boxes: poses and sizes to corners, corners to polygons."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray

from drivefine_agent.geometry.indices import CornerIndex, PoseIndex

FloatArray = NDArray[np.float64]

# Signs of (half length, half width) for each corner, in the order of CornerIndex.
_CORNER_SIGNS = np.zeros((len(CornerIndex), 2))
_CORNER_SIGNS[CornerIndex.FRONT_LEFT] = (1.0, 1.0)
_CORNER_SIGNS[CornerIndex.REAR_LEFT] = (-1.0, 1.0)
_CORNER_SIGNS[CornerIndex.REAR_RIGHT] = (-1.0, -1.0)
_CORNER_SIGNS[CornerIndex.FRONT_RIGHT] = (1.0, -1.0)


def box_corners(centers: ArrayLike, length_m: ArrayLike, width_m: ArrayLike) -> FloatArray:
    """Corners of boxes, counter-clockwise in the order of `CornerIndex`.

    Args:
      centers: (..., 3) pose of each box's centre: x, y [m], heading [rad].
      length_m: extent along the heading [m], broadcastable to the leading axes of `centers`.
      width_m: extent across the heading [m], broadcastable likewise.

    Returns:
      (..., 4, 2) corners [m], in the frame of `centers`.
    """
    centers = np.asarray(centers, dtype=np.float64)
    heading = centers[..., PoseIndex.HEADING, None]
    along = 0.5 * np.asarray(length_m, dtype=np.float64)[..., None] * _CORNER_SIGNS[:, 0]  # (..., 4)
    across = 0.5 * np.asarray(width_m, dtype=np.float64)[..., None] * _CORNER_SIGNS[:, 1]
    cos, sin = np.cos(heading), np.sin(heading)
    x = centers[..., PoseIndex.X, None] + along * cos - across * sin
    y = centers[..., PoseIndex.Y, None] + along * sin + across * cos
    return np.stack([x, y], axis=-1)


def corner_polygons(corners: ArrayLike) -> NDArray[Any]:
    """Closed shapely polygons over boxes' corners.

    Args:
      corners: (..., 4, 2) corners [m] in the order of `CornerIndex`.

    Returns:
      (...) object array of `shapely.Polygon`, whose ring repeats the first corner at its end.
    """
    corners = np.asarray(corners, dtype=np.float64)
    rings = np.concatenate([corners, corners[..., :1, :]], axis=-2)
    return np.asarray(shapely.polygons(rings))
