"""Visual tokens of a set of images in one memory-mapped array, for phases in which vision does not learn.

Then no epoch runs vision tower and projector again.

    <folder>/visual_<weights>_<images>_<dtype>.npy     (N, V, D) float32, or bfloat16 as its bits in uint16

`<weights>` is a fingerprint of every weight of tower and projector, `<images>` that of the tiles (see
`tile_cache.py`): tokens of another tower or of changed images are never read. Arrays are written under
another name first and renamed when complete. An array is large (V D numbers per image: 13 MB in bfloat16 for
the 8B model); it pays for sets that are visited several times.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from drivefine_agent.data.atomic import atomic_path, reserve
from drivefine_agent.training.tile_cache import ImageSet, Tiles

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


VisualType = Literal["float32", "bfloat16"]
VISUAL_TYPES: tuple[str, ...] = get_args(VisualType)

_BATCH_SIZE = 32  # images at a time through the tower


@dataclass(frozen=True)
class VisualTokens:
    """Tokens of N images by position."""

    array: NDArray[Any]
    """(N, V, D) float32, or uint16 with the bits of bfloat16; memory-mapped."""
    fingerprint: str
    """Of the weights they were made with."""

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        """(B, V, D) float32 or bfloat16 of the images at positions (B,)."""
        chosen = torch.from_numpy(self.array[rows])
        return chosen if chosen.dtype == torch.float32 else chosen.view(torch.bfloat16)


def load_visual(
    folder: Path,
    model: DriveFineModel,
    images: ImageSet,
    tiles: Tiles,
    dtype: VisualType = "float32",
    show_progress: bool = True,
) -> VisualTokens:
    """The visual tokens of a set of images, computed at most once for these weights.

    Args:
      folder: where arrays are kept.
      model: its tower and projector as they are now.
      images: N images, for the fingerprint.
      tiles: their tiles.
      dtype: of the array; `float32` keeps the numbers of a float32 model as they are.
      show_progress: draw a progress bar while computing.

    Raises:
      DataError: an image is missing or damaged.
    """
    weights = vision_fingerprint(model)
    file = folder / f"visual_{weights}_{images.fingerprint()}_{dtype}.npy"
    if not file.is_file():
        with atomic_path(file) as part:
            _write_visual(part, model, tiles, dtype, show_progress)
    return VisualTokens(np.load(file, mmap_mode="r"), weights)


def vision_fingerprint(model: DriveFineModel) -> str:
    """Changes with any weight of vision tower and projector."""
    digest = hashlib.blake2b(repr(model.config.tiles).encode(), digest_size=8)
    for part in (model.vision, model.projector):
        for name, weight in part.state_dict().items():
            digest.update(f"{name}/{weight.dtype}/{tuple(weight.shape)}\n".encode())
            flat = weight.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _write_visual(
    file: Path, model: DriveFineModel, tiles: Tiles, dtype: VisualType, show_progress: bool
) -> None:
    shape = (len(tiles), model.config.num_visual_tokens, model.config.text_config.hidden_size)
    stored = np.float32 if dtype == "float32" else np.uint16
    array = np.lib.format.open_memmap(file, mode="w+", dtype=stored, shape=shape)
    reserve(file)
    starts = range(0, len(tiles), _BATCH_SIZE)
    for start in tqdm(starts, desc="Encoding images", unit="batch", disable=not show_progress):
        rows = np.arange(start, min(start + _BATCH_SIZE, len(tiles)))
        visual = model.encode_images(torch.from_numpy(tiles[rows]).to(model.device))
        if dtype == "bfloat16":
            array[rows] = visual.bfloat16().view(torch.uint16).cpu().numpy()
        else:
            array[rows] = visual.float().cpu().numpy()
    array.flush()
