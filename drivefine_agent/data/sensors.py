"""Camera images of the dataset: JPEG, RGB, 1920x1080 as they left the camera, or scaled down by the user."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.errors import DataError

JPEG_QUALITY = 90

MAX_PIXELS = 8192 * 4096
"""Of an image; NAVSIM's have 1920 x 1080. More is refused before anything is decoded."""

_MAX_BYTES = 64 * 1024**2
_MAX_SCANS = 100  # of a JPEG; a progressive one has about 10, and each is a pass over the whole image
_START_OF_SCAN = b"\xff\xda"
_FORMATS = ("JPEG", "PNG")  # Pillow reads fifty, one of them (EPS) by running a program

# What Pillow raises on damaged files, besides OSError.
_DAMAGE = (
    Image.DecompressionBombError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def read_image(root: str | Path, data_path: str) -> NDArray[np.uint8]:
    """A camera image as NAVSIM reads it (decoded by Pillow).

    Args:
      root: the split's folder of sensor blobs, e.g. `sensor_blobs/test`.
      data_path: `CameraRecord.data_path`, relative to `root`.

    Returns:
      (H, W, 3) uint8 RGB; 1080 x 1920 in NAVSIM's data. Other sizes are taken as NAVSIM takes them.

    Raises:
      DataError: the path leaves `root`, or the file is missing or damaged, neither JPEG nor PNG, or declares
        more than `MAX_PIXELS`.
    """
    path = image_path(root, data_path)
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise DataError(
                f"an image may have {_MAX_BYTES} bytes, got {size}: {path}; write it again as a plain JPEG"
            )
        content = path.read_bytes()
        check_image_header(io.BytesIO(content), path)
        scans = content.count(_START_OF_SCAN)
        if scans > _MAX_SCANS:
            raise DataError(
                f"an image may have {_MAX_SCANS} scans, got {scans}: {path}; write it again as a plain JPEG"
            )
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            pixels = np.array(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(
            f"no image at {path}: set original_sensor_path, or OPENSCENE_DATA_ROOT to the folder that holds "
            f"sensor_blobs/<data_split>, or fetch the camera of this log"
        ) from error
    except DataError:
        raise
    except (OSError, *_DAMAGE) as error:
        raise DataError(f"not a readable image ({error}): {path}; fetch or write it again") from error
    return pixels


def check_image_header(file: IO[bytes], path: Path) -> None:
    """Check format and size of an image by its header, without decoding it.

    Args:
      file: the image, open for reading.
      path: for the message.

    Raises:
      DataError: it is neither JPEG nor PNG, has a damaged header, or declares more than `MAX_PIXELS`.
    """
    try:
        width, height = Image.open(file, formats=_FORMATS).size
    except (OSError, *_DAMAGE) as error:
        raise DataError(f"not a readable image ({error}): {path}; fetch or write it again") from error
    if width * height > MAX_PIXELS:
        raise DataError(
            f"an image may have {MAX_PIXELS} pixels, got {width} x {height}: {path}; "
            "scale it down to NAVSIM's 1920 x 1080"
        )


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
            f"an image must be (H, W, 3) uint8 RGB, got {pixels.shape} {pixels.dtype} for {data_path}; "
            "give such pixels"
        )
    is_encoded, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not is_encoded:
        raise DataError(
            f"OpenCV could not encode an image of shape {pixels.shape} for {data_path}: check pixels and "
            "quality"
        )
    path = image_path(root, data_path)
    write_bytes(path, encoded.tobytes())
    return path


def image_path(root: str | Path, data_path: str) -> Path:
    """The file of a camera image; refuses paths that would leave `root`."""
    relative = PurePosixPath(data_path)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise DataError(
            f"an image path must stay inside the sensor folder {root}, got {data_path!r}"
            "; correct the data_path in the log"
        )
    return Path(root) / relative
