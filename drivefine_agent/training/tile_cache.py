"""Image tiles of a set of scenes, in one memory-mapped array or decoded whenever asked for.

The array spares every epoch but the first the decoding of JPEGs. Where it would not fit on the disk (an image
takes 3.5 MB at the 8B model's tiling) there is none.

    <folder>/tiles_<fingerprint>.npy     (N, tiles, size, size, 3) uint8, in the order of the scenes

The fingerprint covers the tiling, the scenes and each image file's size and modification time: a changed
image or another tiling never meets an old array. Arrays are written under another name first and renamed when
complete.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from drivefine_agent.data.atomic import atomic_path, reserve
from drivefine_agent.data.sensors import read_image
from drivefine_agent.errors import DataError
from drivefine_agent.model.tiles import TileSpec, tile_image


@dataclass(frozen=True)
class ImageSet:
    """N images below one folder and how they are tiled."""

    paths: tuple[str, ...]
    """(N,) relative to `root`."""
    root: Path
    spec: TileSpec

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(B, tiles, size, size, 3) tiles of the images at positions (B,), decoded now.

        Raises:
          DataError: an image is missing or damaged.
        """
        return np.stack([self.tile(int(row)) for row in rows])

    def tile(self, index: int) -> NDArray[np.uint8]:
        """(tiles, size, size, 3) of one image; raises as above."""
        return tile_image(read_image(self.root, self.paths[index]), self.spec)

    def fingerprint(self) -> str:
        """Changes with the tiling, the list of images, and each file's size and modification time.

        Raises:
          DataError: an image is missing.
        """
        digest = hashlib.blake2b(repr(sorted(asdict(self.spec).items())).encode(), digest_size=8)
        for path in self.paths:
            try:
                status = (self.root / path).stat()
            except OSError as error:
                raise DataError(
                    f"cannot read image {path} below {self.root}: {error.strerror}. Set "
                    "original_sensor_path, or image_root of a JSON-lines source"
                ) from error
            digest.update(f"{path}/{status.st_size}/{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


Tiles = NDArray[np.uint8] | ImageSet
"""Tiles by position: (N, tiles, size, size, 3), memory-mapped, or decoded when asked for."""


def load_tiles(
    folder: Path | None, images: ImageSet, num_threads: int = 2, show_progress: bool = True
) -> Tiles:
    """The tiles of a set of images, decoded at most once where there is a folder for them.

    Args:
      folder: where arrays are kept; None: nothing is kept.
      images: N images.
      num_threads: images decoded at a time.
      show_progress: draw a progress bar while decoding.

    Raises:
      DataError: an image is missing or damaged.
    """
    fingerprint = images.fingerprint()  # also sees to it that all are there
    if folder is None:
        return images
    file = folder / f"tiles_{fingerprint}.npy"
    if not file.is_file():
        with atomic_path(file) as part:
            _write_tiles(part, images, num_threads, show_progress)
    return np.load(file, mmap_mode="r")


def _write_tiles(file: Path, images: ImageSet, num_threads: int, show_progress: bool) -> None:
    spec = images.spec
    shape = (len(images), spec.num_tiles, spec.size_px, spec.size_px, 3)
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    reserve(file)
    with ThreadPoolExecutor(num_threads) as pool:
        decoded = pool.map(images.tile, range(len(images)))
        bar = tqdm(decoded, total=len(images), desc="Reading images", unit="image", disable=not show_progress)
        for i, tiles in enumerate(bar):
            array[i] = tiles
    array.flush()
