"""Image tiles of a set of scenes in one memory-mapped array, so that no epoch decodes a JPEG again.

    <folder>/tiles_<fingerprint>.npy     (N, tiles, size, size, 3) uint8, in the order of the scenes

The fingerprint covers the tiling, the scenes and each image file's size and modification time: a changed
image or another tiling never meets an old array. Arrays are written under another name first and renamed when
complete.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from drivefine_agent.data.sensors import read_image
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.model.tiles import TileSpec, tile_image
from drivefine_agent.navsim_inputs import FRONT_CAMERA


def load_tiles(
    folder: Path,
    windows: Sequence[SceneWindow],
    sensor_root: Path,
    spec: TileSpec,
    num_threads: int = 2,
    show_progress: bool = True,
) -> NDArray[np.uint8]:
    """The tiles of every window's current front camera image, decoded at most once.

    Args:
      folder: where arrays are kept.
      windows: N scenes.
      sensor_root: folder that the logs' camera paths are relative to.
      spec: tiling.
      num_threads: images decoded at a time.
      show_progress: draw a progress bar while decoding.

    Returns:
      (N, tiles, size, size, 3) uint8, read-only and memory-mapped.

    Raises:
      DataError: an image is missing or damaged.
    """
    paths = [window.current.cameras[FRONT_CAMERA].data_path for window in windows]
    file = folder / f"tiles_{_fingerprint(paths, sensor_root, spec)}.npy"
    if not file.is_file():
        part = file.with_suffix(f".{os.getpid()}.part")
        try:
            _write_tiles(part, paths, sensor_root, spec, num_threads, show_progress)
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
    return np.load(file, mmap_mode="r")


def _write_tiles(
    file: Path, paths: Sequence[str], sensor_root: Path, spec: TileSpec, num_threads: int, show_progress: bool
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(paths), spec.num_tiles, spec.size_px, spec.size_px, 3)
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    with ThreadPoolExecutor(num_threads) as pool:
        decoded = pool.map(lambda path: tile_image(read_image(sensor_root, path), spec), paths)
        bar = tqdm(decoded, total=len(paths), desc="Reading images", unit="image", disable=not show_progress)
        for i, tiles in enumerate(bar):
            array[i] = tiles
    array.flush()


def _fingerprint(paths: Sequence[str], sensor_root: Path, spec: TileSpec) -> str:
    digest = hashlib.blake2b(repr(sorted(asdict(spec).items())).encode(), digest_size=8)
    for path in paths:
        try:
            status = (sensor_root / path).stat()
        except OSError as error:
            raise DataError(
                f"cannot read image {path} below {sensor_root}: {error.strerror}. Set original_sensor_path"
            ) from error
        digest.update(f"{path}/{status.st_size}/{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
