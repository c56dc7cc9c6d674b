"""Angles and planar frame changes, batched over any leading axes. Knows nothing of the records above it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivefine_agent.geometry.indices import PoseIndex

FloatArray = NDArray[np.float64]


def wrap_angle(angle: ArrayLike) -> FloatArray:
    """The principal value of an angle, by atan2(sin, cos).

    Args:
      angle: (...) angles [rad].

    Returns:
      (...) the same angles in [-pi, pi].
    """
    angle = np.asarray(angle, dtype=np.float64)
    return np.asarray(np.arctan2(np.sin(angle), np.cos(angle)))


def rotate(vectors: ArrayLike, angle: ArrayLike) -> FloatArray:
    """Vectors turned counter-clockwise by an angle.

    Args:
      vectors: (..., 2) x and y.
      angle: broadcastable to the leading axes of `vectors` [rad].

    Returns:
      (..., 2) the turned vectors.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def local_from_global(poses: ArrayLike, origin: ArrayLike) -> FloatArray:
    """Poses as seen from `origin`.

    `xy_local = R(-theta_0) (xy - xy_0)`, `theta_local = wrap(theta - theta_0)`.

    Args:
      poses: (..., 3) x, y [m], heading [rad] in the frame in which `origin` is given.
      origin: (..., 3) pose of the new frame, broadcastable to `poses`.

    Returns:
      (..., 3) x, y [m], heading [rad] in the frame of `origin`.
    """
    poses = np.asarray(poses, dtype=np.float64)
    origin = np.asarray(origin, dtype=np.float64)
    heading_0 = origin[..., PoseIndex.HEADING]
    xy = rotate(poses[..., :2] - origin[..., :2], -heading_0)
    heading = wrap_angle(poses[..., PoseIndex.HEADING] - heading_0)
    return np.concatenate([xy, heading[..., None]], axis=-1)


def global_from_local(poses: ArrayLike, origin: ArrayLike) -> FloatArray:
    """Poses given in the frame of `origin`, lifted into the frame in which `origin` is given.

    `xy = xy_0 + R(theta_0) xy_local`, `theta = wrap(theta_local + theta_0)`.

    Args:
      poses: (..., 3) x, y [m], heading [rad] in the frame of `origin`.
      origin: (..., 3) pose of that frame, broadcastable to `poses`.

    Returns:
      (..., 3) x, y [m], heading [rad].
    """
    poses = np.asarray(poses, dtype=np.float64)
    origin = np.asarray(origin, dtype=np.float64)
    heading_0 = origin[..., PoseIndex.HEADING]
    xy = origin[..., :2] + rotate(poses[..., :2], heading_0)
    heading = wrap_angle(poses[..., PoseIndex.HEADING] + heading_0)
    return np.concatenate([xy, heading[..., None]], axis=-1)


def polyline_headings(vertices: ArrayLike) -> FloatArray:
    """Heading of each vertex towards the next one; the last repeats its predecessor's.

    Args:
      vertices: (N, 2) polyline [m], N >= 2.

    Returns:
      (N,) headings [rad] in [-pi, pi].

    Raises:
      ValueError: if there are fewer than two vertices.
    """
    vertices = np.asarray(vertices, dtype=np.float64)
    if vertices.ndim != 2 or vertices.shape[0] < 2 or vertices.shape[1] != 2:
        raise ValueError(f"vertices must have the shape (N >= 2, 2), got {vertices.shape}")
    steps = np.diff(vertices, axis=0)
    headings = np.arctan2(steps[:, 1], steps[:, 0])
    return np.append(headings, headings[-1])
