"""Scenes as arrays to learn from: everything a training step needs is one index away.

Images are tiles in a memory-mapped array or files decoded when asked for (`tile_cache.py`), prompts and
answers are token ids made once. A batch is assembled by indexing, in the training process itself or in a
loader's (`loader.py`): on few cores the former beats worker processes, which would spend the time copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drivefine_agent.data.types import Observation
from drivefine_agent.model.tiles import TileSpec
from drivefine_agent.navsim_inputs import FRONT_CAMERA, human_poses, observation_from_window
from drivefine_agent.prompt import PromptBuilder, ego_status, pad_contexts
from drivefine_agent.tokenizer import ClipCounts
from drivefine_agent.training.augmentation import jitter_light, mirror_motion, mirror_poses, mirror_tiles
from drivefine_agent.training.config import AugmentationConfig
from drivefine_agent.training.perception import mirror_grid, perception_targets
from drivefine_agent.training.scenes import SplitScenes
from drivefine_agent.training.tile_cache import ImageSet, Tiles, load_tiles
from drivefine_agent.training.visual_cache import VisualTokens


class Batch(NamedTuple):
    """B scenes on the model's device."""

    tiles: Tensor | None
    """(B, T, S, S, 3) uint8; None with `visual`."""
    context_ids: Tensor
    """(B, C) token ids, right-padded."""
    context_lengths: Tensor | None
    """(B,), None where nothing is padded."""
    actions: Tensor
    """(B, 24) action ids of the demonstrations."""
    poses: NDArray[np.float64]
    """(B, 8, 3) the demonstrations themselves."""
    perception: Tensor | None = None
    """(B, 2, rows, cols) float32 auxiliary grid, None where the model has none."""
    visual: Tensor | None = None
    """(B, V, D) visual tokens in place of the tiles, where they are kept (`visual_cache.py`)."""
    status: Tensor | None = None
    """(B, 20) float32 ego status (`prompt.ego_status`), for a diffusion head."""

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        lengths = None if self.context_lengths is None else self.context_lengths.to(device)
        perception = None if self.perception is None else self.perception.to(device)
        return Batch(
            None if self.tiles is None else self.tiles.to(device),
            self.context_ids.to(device),
            lengths,
            self.actions.to(device),
            self.poses,
            perception,
            None if self.visual is None else self.visual.to(device),
            None if self.status is None else self.status.to(device),
        )


@dataclass(frozen=True)
class Demonstrations:
    """N scenes with what their drivers did. Second axes of length 2: as recorded, mirrored."""

    tokens: tuple[str, ...]
    tiles: Tiles
    """(N, T, S, S, 3), memory-mapped, or decoded when asked for."""
    tile_spec: TileSpec
    context_ids: NDArray[np.int64]
    """(N, 2, C) padded token ids."""
    context_lengths: NDArray[np.int64] | None
    """(N, 2), None where nothing is padded."""
    poses: NDArray[np.float64]
    """(N, 2, 8, 3)."""
    actions: NDArray[np.int64]
    """(N, 2, 24) action ids."""
    clipped: ClipCounts
    """Demonstrations outside the action tables; as recorded only."""
    num_clipped_inputs: int
    """Prompt numbers outside the action tables; as recorded only."""
    perception: NDArray[np.bool_] | None = None
    """(N, 2, 2, rows, cols) auxiliary grids, None where the model has none; see `perception.py`."""
    status: NDArray[np.float32] | None = None
    """(N, 2, 20) ego status, see `prompt.ego_status`."""
    images: ImageSet | None = field(default=None, repr=False)
    """What the tiles were made from."""
    visual: VisualTokens | None = field(default=None, repr=False)
    """Kept visual tokens, in place of the tiles; then scenes cannot be augmented."""

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(
        self,
        index: Sequence[int] | NDArray[np.int64],
        augmentation: AugmentationConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> Batch:
        """The scenes `index`, changed at random if asked for.

        Args:
          index: (B,) positions in the set.
          augmentation: None: scenes as recorded.
          generator: random numbers of the augmentation.
        """
        rows = np.asarray(index)
        is_mirrored = np.zeros(len(rows), dtype=bool)
        if self.visual is not None:
            assert augmentation is None or not augmentation.changes_images  # the configuration sees to it
            return self._assembled(rows, is_mirrored, None, self.visual[rows])
        tiles = self.tiles[rows]  # a copy, in memory
        if augmentation is not None:
            is_mirrored = (
                torch.rand(len(rows), generator=generator) < augmentation.mirror_probability
            ).numpy()
            tiles[is_mirrored] = mirror_tiles(tiles[is_mirrored], self.tile_spec)
        images = torch.from_numpy(tiles)
        if augmentation is not None and augmentation.light_jitter > 0:
            assert generator is not None
            images = jitter_light(images, augmentation.light_jitter, generator)
        return self._assembled(rows, is_mirrored, images, None)

    def _assembled(
        self,
        rows: NDArray[np.int64],
        is_mirrored: NDArray[np.bool_],
        images: Tensor | None,
        visual: Tensor | None,
    ) -> Batch:
        side = is_mirrored.astype(np.int64)
        lengths = None if self.context_lengths is None else torch.from_numpy(self.context_lengths[rows, side])
        return Batch(
            images,
            torch.from_numpy(self.context_ids[rows, side]),
            lengths,
            torch.from_numpy(self.actions[rows, side]),
            self.poses[rows, side],
            None if self.perception is None else torch.from_numpy(self.perception[rows, side]).float(),
            visual,
            None if self.status is None else torch.from_numpy(self.status[rows, side]),
        )


def load_demonstrations(
    scenes: SplitScenes, prompts: PromptBuilder, tile_folder: Path | None, show_progress: bool = True
) -> Demonstrations:
    """Turns the scenes of a split into arrays.

    Args:
      scenes: the split.
      prompts: writes prompts in the model's format.
      tile_folder: where tiles are kept between runs; None: images are decoded when asked for.
      show_progress: draw a progress bar while images are read.

    Raises:
      DataError: a scene has no 4 s of future, or its image is missing or damaged.
    """
    paths = tuple(window.current.cameras[FRONT_CAMERA].data_path for window in scenes.windows)
    images = ImageSet(paths, scenes.sensor_root, prompts.config.tiles)
    placeholder = np.zeros((1, 1, 3), dtype=np.uint8)  # the image itself is in the tiles
    observations = [observation_from_window(window, placeholder) for window in scenes.windows]
    poses = np.stack([human_poses(window) for window in scenes.windows])  # (N, 8, 3)
    perception = None
    if prompts.config.perception_rows > 0 and scenes.maps_root is not None:
        grids = perception_targets(
            scenes.windows,
            scenes.maps_root,
            prompts.config.perception_rows,
            prompts.config.perception_cols,
            show_progress,
        )
        perception = np.stack([grids, mirror_grid(grids)], axis=1)
    tokens = tuple(window.token for window in scenes.windows)
    tiles = load_tiles(tile_folder, images, show_progress=show_progress)
    return make_demonstrations(tokens, images, tiles, observations, poses, prompts, perception)


def make_demonstrations(
    tokens: tuple[str, ...],
    images: ImageSet,
    tiles: Tiles,
    observations: Sequence[Observation],
    poses: NDArray[np.float64],
    prompts: PromptBuilder,
    perception: NDArray[np.bool_] | None = None,
) -> Demonstrations:
    """Arrays of N scenes, from what is known of each.

    Args:
      tokens: (N,) names.
      images: N front camera images.
      tiles: their tiles.
      observations: N of them; their images are not used.
      poses: (N, 8, 3) what the drivers did.
      prompts: writes prompts in the model's format.
      perception: (N, 2, 2, rows, cols), see `Demonstrations.perception`.
    """
    pairs = [(observation, mirror_motion(observation)) for observation in observations]
    recorded = [prompts.context(observation) for observation, _ in pairs]
    mirrored = [prompts.context(observation) for _, observation in pairs]
    pad_id = prompts.config.text_config.pad_token_id or 0
    ids, lengths = pad_contexts(
        [context.ids for pair in zip(recorded, mirrored, strict=True) for context in pair], pad_id
    )
    both = np.stack([poses, mirror_poses(poses)], axis=1)  # (N, 2, 8, 3)
    count = len(tokens)
    return Demonstrations(
        tokens=tokens,
        tiles=tiles,
        tile_spec=prompts.config.tiles,
        context_ids=ids.reshape(count, 2, -1),
        context_lengths=None if lengths is None else lengths.reshape(count, 2),
        poses=both,
        actions=prompts.action_tokenizer.encode(both),
        clipped=prompts.action_tokenizer.count_clipped(poses),
        num_clipped_inputs=sum(context.num_clipped for context in recorded),
        perception=perception,
        status=np.array([[ego_status(observation) for observation in pair] for pair in pairs]),
        images=images,
    )
