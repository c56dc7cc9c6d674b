"""Camera images of the dataset: JPEG, RGB, 1920x1080 as they left the camera, or scaled down by the user."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.errors import DataError

JPEG_QUALITY = 90


def read_image(root: str | Path, data_path: str) -> NDArray[np.uint8]:
    """A camera image as NAVSIM reads it (decoded by Pillow).

    Args:
      root: the split's folder of sensor blobs, e.g. `sensor_blobs/test`.
      data_path: `CameraRecord.data_path`, relative to `root`.

    Returns:
      (H, W, 3) uint8 RGB; 1080 x 1920 in NAVSIM's data. Other sizes are taken as NAVSIM takes them.

    Raises:
      DataError: the path leaves `root`, or the file is missing or damaged.
    """
    path = image_path(root, data_path)
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(
            f"no image at {path}: set original_sensor_path, or OPENSCENE_DATA_ROOT to the folder that holds "
            f"sensor_blobs/<data_split>, or fetch the camera of this log"
        ) from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(f"not a readable image ({error}): {path}; fetch or write it again") from error
    return pixels


def write_image(root: str | Path, data_path: str, pixels: NDArray[Any], quality: int = JPEG_QUALITY) -> Path:
    """Write a camera image as JPEG.

    Args:
      root: the split's folder of sensor blobs.
      data_path: relative to `root`, e.g. `<log>/CAM_F0/<token>.jpg`.
      pixels: (H, W, 3) uint8 RGB.
      quality: of the JPEG, 1 to 100. 90 gives about 0.3 bytes per pixel with no visible loss.

    Returns:
      The file's path.

    Raises:
      DataError: pixels of another shape or type, or a place that cannot be written.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise DataError(
            f"an image must be (H, W, 3) uint8 RGB, got {pixels.shape} {pixels.dtype} for {data_path}"
        )
    is_encoded, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not is_encoded:
        raise DataError(f"OpenCV could not encode the image for {data_path}")
    path = image_path(root, data_path)
    write_bytes(path, encoded.tobytes())
    return path


def image_path(root: str | Path, data_path: str) -> Path:
    """The file of a camera image; refuses paths that would leave `root`."""
    relative = PurePosixPath(data_path)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise DataError(f"an image path must stay inside the sensor folder {root}, got {data_path!r}")
    return Path(root) / relative
