"""Changes of a scene that keep its demonstration right.

Mirroring left and right changes image, motion, command and answer together, and gives a scene that the
vehicle could as well have met, but for the side of the road traffic keeps to. Jitter changes the light only.
Shifting or zooming the image is not here: it would need another answer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drivefine_agent.constants import DRIVING_COMMANDS
from drivefine_agent.data.types import Observation
from drivefine_agent.model.tiles import TileSpec

_MIRRORED = {"left": "right", "right": "left"}
_COMMAND_ORDER = [DRIVING_COMMANDS.index(_MIRRORED.get(name, name)) for name in DRIVING_COMMANDS]


def mirror_poses(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 3) poses with left and right exchanged: y and heading change sign."""
    return poses * np.array([1.0, -1.0, -1.0])


def mirror_motion(observation: Observation) -> Observation:
    """The observation with left and right exchanged in all but the image; see `mirror_tiles` for that."""
    sign = np.array([1.0, -1.0])
    return replace(
        observation,
        history_poses=mirror_poses(observation.history_poses),
        velocity=observation.velocity * sign,
        acceleration=observation.acceleration * sign,
        driving_command=observation.driving_command[_COMMAND_ORDER],
    )


def mirror_tiles(tiles: NDArray[np.uint8], spec: TileSpec) -> NDArray[np.uint8]:
    """Tiles of the mirrored image, from the tiles of the image.

    Args:
      tiles: (..., cols * rows, size, size, 3), row by row.
      spec: the tiling.

    Returns:
      As `tiles`: the columns of the grid in reverse order, each tile flipped.
    """
    grid = tiles.reshape(*tiles.shape[:-4], spec.rows, spec.cols, *tiles.shape[-3:])
    return grid[..., ::-1, :, ::-1, :].reshape(tiles.shape)


def jitter_light(tiles: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Changes brightness, contrast and colour balance of each image by random amounts.

    Args:
      tiles: (B, T, S, S, 3) uint8.
      strength: largest relative change of contrast and (half as much) of channel gains; brightness shifts
        by up to half this share of the full range; 0 changes nothing.
      generator: random numbers.

    Returns:
      (B, T, S, S, 3) uint8.
    """
    if strength == 0:
        return tiles
    draws = 2 * torch.rand(len(tiles), 5, generator=generator) - 1  # (B, 5)
    gain = (1 + strength * draws[:, :1]) * (1 + 0.5 * strength * draws[:, 1:4])  # (B, 3)
    shift = 255 * 0.5 * strength * draws[:, 4:]  # (B, 1)
    offset = 128 * (1 - gain) + shift  # contrast about mid-grey
    changed = tiles * gain[:, None, None, None] + offset[:, None, None, None]
    return changed.round_().clamp_(0, 255).to(torch.uint8)
