"""Trajectories on the road of the front camera's image, as outlines in pixels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from drivefine_agent.data.types import Annotations, CameraRecord
from drivefine_agent.evaluation.paths import densify, ribbon_edges
from drivefine_agent.geometry.indices import BoxIndex

FloatArray = NDArray[np.float64]

_SPACING_M = 0.35  # of the points along a painted line
_NEAREST_M = 1.0  # of depth: nearer points are under or behind the lens


def project_to_image(points: FloatArray, camera: CameraRecord) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Pixels of points in the ego frame.

    p_camera = R^T (p_ego - t), then distortion (k1, k2, p1, p2, k3; OpenCV's model), then the intrinsics.

    Args:
      points: (N, 3) x, y, z [m], ego frame.
      camera: calibration.

    Returns:
      (N, 2) pixels (NaN where not in front of the lens) and (N,) whether in front of it.
    """
    k1, k2, p1, p2, k3 = camera.distortion
    in_camera = (
        points - camera.sensor2lidar_translation
    ) @ camera.sensor2lidar_rotation  # (N, 3), rows times R
    depth = in_camera[:, 2]
    safe_depth = np.where(depth > _NEAREST_M, depth, 1.0)
    x, y = in_camera[:, 0] / safe_depth, in_camera[:, 1] / safe_depth
    square = x * x + y * y
    is_seen = (depth > _NEAREST_M) & (square < widest_square_slope(k1, k2, k3))
    radial = 1.0 + square * (k1 + square * (k2 + square * k3))
    x_bent = x * radial + 2.0 * p1 * x * y + p2 * (square + 2.0 * x * x)
    y_bent = y * radial + p1 * (square + 2.0 * y * y) + 2.0 * p2 * x * y
    homogeneous = np.stack([x_bent, y_bent, np.ones_like(x)], axis=1) @ camera.intrinsics.T  # (N, 3)
    pixels = homogeneous[:, :2]
    pixels[~is_seen] = np.nan
    return pixels, is_seen


def widest_square_slope(k1: float, k2: float, k3: float) -> float:
    """Largest squared slope r^2 up to which r (1 + k1 r^2 + k2 r^4 + k3 r^6), the bent radius, still grows.

    Beyond it the polynomial folds back and would paint points far outside the view into the picture.
    """
    roots = np.roots([7.0 * k3, 5.0 * k2, 3.0 * k1, 1.0])
    turning = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0.0)]
    return (
        float(turning.min()) if len(turning) else 9.0
    )  # without a fold: 3 units, or 72 degrees off the axis


def ground_height(annotations: Annotations | None, radius_m: float = 40.0) -> float:
    """Height of the road in the ego frame [m]: the median bottom of the vehicles around; 0 if there are none.

    Datasets differ in how far the ego frame's origin lies above the road; boxes stand on it in all of them.
    """
    if annotations is None or not annotations.names:
        return 0.0
    boxes = annotations.boxes
    distance = np.hypot(boxes[:, BoxIndex.X], boxes[:, BoxIndex.Y])
    is_near = (distance < radius_m) & (np.array(annotations.names) == "vehicle")
    if not is_near.any():
        return 0.0
    return float(np.median(boxes[is_near, BoxIndex.Z] - boxes[is_near, BoxIndex.HEIGHT] / 2))


def ribbon_outlines(
    line: FloatArray,
    half_width_m: float,
    camera: CameraRecord,
    ground_z_m: float = 0.0,
    dash_m: tuple[float, float] | None = None,
) -> list[FloatArray]:
    """Outlines, in pixels of the calibrated image, of a ribbon painted on the road.

    Args:
      line: (N, 2) middle of the ribbon [m], ego frame.
      half_width_m: half its width.
      camera: calibration.
      ground_z_m: height of the road in the ego frame.
      dash_m: length of a dash and of the gap behind it [m]; None: one piece.

    Returns:
      (M, 2) closed polygons (first point not repeated); what lies behind the lens is left out.
    """
    middle = densify(line, _SPACING_M)
    left, right = ribbon_edges(middle, half_width_m)
    pixels, is_seen = zip(
        *(
            project_to_image(np.column_stack([edge, np.full(len(edge), ground_z_m)]), camera)
            for edge in (left, right)
        ),
        strict=True,
    )
    way = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(middle, axis=0), axis=1))])
    is_painted = is_seen[0] & is_seen[1]
    piece = np.zeros(len(way), dtype=np.int64)
    if dash_m is not None:
        piece, phase = np.divmod(way, sum(dash_m))
        is_painted &= phase <= dash_m[0]
    starts = np.flatnonzero(is_painted & ~np.r_[False, is_painted[:-1] & (piece[1:] == piece[:-1])])
    outlines = []
    for start in starts:
        stop = start + 1
        while stop < len(way) and is_painted[stop] and piece[stop] == piece[start]:
            stop += 1
        if stop - start > 1:
            outlines.append(np.vstack([pixels[0][start:stop], pixels[1][start:stop][::-1]]))
    return outlines


def encode_jpeg(image: NDArray[np.uint8], width_px: int, quality: int = 66) -> bytes:
    """JPEG file of an RGB image (H, W, 3), scaled to a width."""
    height = round(image.shape[0] * width_px / image.shape[1])
    scaled = cv2.resize(image, (width_px, height), interpolation=cv2.INTER_AREA)
    done, encoded = cv2.imencode(".jpg", scaled[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"an image must be one that OpenCV can write as JPEG, got shape {image.shape}")
    return bytes(encoded)
