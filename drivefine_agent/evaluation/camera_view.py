"""Trajectories painted on the road of the front camera's image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from drivefine_agent.constants import EGO_WIDTH_M
from drivefine_agent.data.types import Annotations, CameraRecord
from drivefine_agent.evaluation.paths import DrawnPath, densify, ribbon_edges
from drivefine_agent.geometry.indices import BoxIndex

FloatArray = NDArray[np.float64]

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


def draw_paths(
    image: NDArray[np.uint8],
    camera: CameraRecord,
    paths: Sequence[DrawnPath],
    ground_z_m: float = 0.0,
    width_px: int = 960,
) -> NDArray[np.uint8]:
    """The image, scaled to `width_px`, with every trajectory painted on the ground as a ribbon.

    Args:
      image: (H, W, 3) RGB; the camera's intrinsics belong to this size.
      camera: calibration of the image.
      paths: main ones are painted last, as wide as the vehicle, translucent, with a solid line in it.
      ground_z_m: height of the road in the ego frame.
      width_px: of the result.

    Returns:
      (H', width_px, 3) RGB.
    """
    height, width = image.shape[:2]
    scale = width_px / width
    canvas = cv2.resize(image, (width_px, round(height * scale)), interpolation=cv2.INTER_AREA)
    ordered = sorted(paths, key=lambda path: path.is_main)
    for path in ordered:
        if path.is_main:
            line, colour = densify(path.line, 0.25), _rgb(path.colour)
            canvas = _fill_ribbon(canvas, line, EGO_WIDTH_M / 2, colour, 0.35, camera, ground_z_m, scale)
    for path in ordered:
        line, colour = densify(path.line, 0.25), _rgb(path.colour)
        if path.is_dashed:
            for start in range(0, len(line) - 1, 10):
                piece = line[start : start + 7]
                canvas = _fill_ribbon(canvas, piece, 0.14, colour, 0.95, camera, ground_z_m, scale)
        else:
            canvas = _fill_ribbon(canvas, line, 0.14, colour, 0.95, camera, ground_z_m, scale)
    return np.asarray(canvas, dtype=np.uint8)


def _fill_ribbon(canvas, line, half_width_m, colour, opacity, camera, ground_z_m, scale):
    """`canvas` with the part of a ground ribbon that lies in front of the lens blended in."""
    if len(line) < 2:
        return canvas
    left, right = ribbon_edges(line, half_width_m)
    edges = []
    for edge in (left, right):
        pixels, is_seen = project_to_image(np.column_stack([edge, np.full(len(edge), ground_z_m)]), camera)
        edges.append((pixels * scale, is_seen))
    is_seen = edges[0][1] & edges[1][1]
    mask = np.zeros(canvas.shape[:2], dtype=np.uint8)
    shift = 4  # OpenCV's fixed point: sixteenths of a pixel
    for index in np.flatnonzero(is_seen[:-1] & is_seen[1:]):
        quad = np.array(
            [edges[0][0][index], edges[0][0][index + 1], edges[1][0][index + 1], edges[1][0][index]]
        )
        quad = np.clip(quad, -4000.0, 8000.0)
        cv2.fillPoly(mask, [np.round(quad * 2**shift).astype(np.int32)], 255, cv2.LINE_AA, shift)
    weight = opacity * (mask.astype(np.float32) / 255.0)[..., None]
    return np.round(canvas * (1.0 - weight) + np.array(colour, dtype=np.float32) * weight).astype(np.uint8)


def _rgb(colour: str) -> tuple[int, int, int]:
    """(r, g, b) of #rrggbb."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def encode_jpeg(image: NDArray[np.uint8], quality: int = 82) -> bytes:
    """JPEG file of an RGB image (H, W, 3)."""
    done, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"OpenCV could not encode an image of shape {image.shape} as JPEG")
    return bytes(encoded)
