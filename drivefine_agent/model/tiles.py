"""Front-camera image -> fixed grid of square tiles, compact uint8. Torch-free, so data workers stay light."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drivefine_agent.constants import IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX

TileFit = Literal["resize", "crop", "letterbox"]
TileInterpolation = Literal["bicubic", "area"]


@dataclass(frozen=True)
class TileSpec:
    """A canvas of `cols` x `rows` square tiles and how the image is fitted to it."""

    cols: int = 4
    rows: int = 2
    size_px: int = 384
    """Side of one tile: the vision tower's input."""
    fit: TileFit = "resize"
    """How the image gets onto the canvas.

    `resize` squeezes it (always the same camera, always the same squeeze); `crop` cuts it to the canvas's
    aspect ratio first; `letterbox` keeps the whole image and pads with black.
    """
    interpolation: TileInterpolation = "bicubic"
    """How pixels are reduced.

    `bicubic` is Pillow's, bit for bit SigLIP's own preprocessing; `area` is OpenCV's averaging, many times
    faster for strong reductions.
    """

    def __post_init__(self) -> None:
        if min(self.cols, self.rows, self.size_px) < 1:
            raise ValueError(
                f"cols, rows and size_px must be positive, got {self.cols}, {self.rows}, {self.size_px}"
            )
        if self.fit not in get_args(TileFit):
            raise ValueError(f"unknown tile fit {self.fit!r}: choose one of {', '.join(get_args(TileFit))}")
        if self.interpolation not in get_args(TileInterpolation):
            known = ", ".join(get_args(TileInterpolation))
            raise ValueError(f"unknown tile interpolation {self.interpolation!r}: choose one of {known}")

    @property
    def num_tiles(self) -> int:
        """Tiles per image."""
        return self.cols * self.rows

    @property
    def canvas_px(self) -> tuple[int, int]:
        """(width, height) of all tiles together."""
        return self.cols * self.size_px, self.rows * self.size_px

    def visible_cells(self, cells_per_tile: int) -> tuple[slice, slice]:
        """Rows and columns of the stitched feature map that show image rather than letterbox padding.

        Args:
          cells_per_tile: side of one tile's feature map.

        Returns:
          Slices of a (rows * cells, cols * cells) map, for a 1920 x 1080 image. LaViDa's "unpad" rule.
        """
        height, width = self.rows * cells_per_tile, self.cols * cells_per_tile
        if self.fit != "letterbox":
            return slice(0, height), slice(0, width)
        if (
            IMAGE_WIDTH_PX * height > IMAGE_HEIGHT_PX * width
        ):  # the image is wider than the canvas: bars above, below
            padding = (height - int(IMAGE_HEIGHT_PX * width / IMAGE_WIDTH_PX)) // 2
            return slice(padding, height - padding), slice(0, width)
        padding = (width - int(IMAGE_WIDTH_PX * height / IMAGE_HEIGHT_PX)) // 2
        return slice(0, height), slice(padding, width - padding)


def tile_image(image: NDArray[np.uint8], spec: TileSpec) -> NDArray[np.uint8]:
    """Cuts an image into tiles, row by row.

    Args:
      image: (H, W, 3) uint8 RGB.
      spec: canvas and fit.

    Returns:
      (num_tiles, size, size, 3) uint8 RGB; normalisation is left to the model.

    Raises:
      ValueError: if the image is not (H, W, 3) uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an RGB image (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
    canvas = _fit(image, spec)
    tiles = canvas.reshape(spec.rows, spec.size_px, spec.cols, spec.size_px, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(spec.num_tiles, spec.size_px, spec.size_px, 3)


def _fit(image: NDArray[np.uint8], spec: TileSpec) -> NDArray[np.uint8]:
    """(canvas height, canvas width, 3) image fitted to the canvas."""
    height, width = image.shape[:2]
    canvas_width, canvas_height = spec.canvas_px
    if spec.fit == "resize":
        return _resize(image, canvas_width, canvas_height, spec.interpolation)
    if spec.fit == "crop":
        kept_width = min(width, round(height * canvas_width / canvas_height))
        kept_height = min(height, round(width * canvas_height / canvas_width))
        top, left = (height - kept_height) // 2, (width - kept_width) // 2
        kept = image[top : top + kept_height, left : left + kept_width]
        return _resize(kept, canvas_width, canvas_height, spec.interpolation)
    scale = min(canvas_width / width, canvas_height / height)
    new_width = min(canvas_width, math.ceil(width * scale))  # up, as LaViDa
    new_height = min(canvas_height, math.ceil(height * scale))
    top, left = (canvas_height - new_height) // 2, (canvas_width - new_width) // 2
    canvas = np.zeros((canvas_height, canvas_width, 3), dtype=np.uint8)
    resized = _resize(image, new_width, new_height, spec.interpolation)
    canvas[top : top + new_height, left : left + new_width] = resized
    return canvas


def _resize(
    image: NDArray[np.uint8], width: int, height: int, interpolation: TileInterpolation
) -> NDArray[np.uint8]:
    if interpolation == "area":
        return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
