"""The forward process: which of the answer's slots are masked. The prompt is never touched."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from drivefine_agent.actions import MASKED

NoiseName = Literal["bernoulli", "count"]
NOISES: tuple[str, ...] = get_args(NoiseName)

MIN_MASK_RATIO = 1e-3
"""LLaDA: p = (1 - 1e-3) t + 1e-3."""


def sample_mask_ratios(
    batch_size: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """(B,) float32 mask ratios in [1e-3, 1], stratified: one in each of B equal parts, shuffled."""
    part = torch.randperm(batch_size, generator=generator, device=device)
    offset = torch.rand(batch_size, generator=generator, device=device)
    return (1.0 - MIN_MASK_RATIO) * (part + offset) / batch_size + MIN_MASK_RATIO


def sample_masks(
    ratios: Tensor, length: int, noise: NoiseName = "bernoulli", generator: torch.Generator | None = None
) -> Tensor:
    """Draws which slots are masked; at least one in every row.

    Args:
      ratios: (B,) mask ratios in (0, 1].
      length: L, slots of the answer.
      noise: `bernoulli` masks each slot independently with the ratio's probability; `count` masks exactly
        ceil(ratio L) slots, so that 1..L are equally frequent under uniform ratios.
      generator: of the ratios' device.

    Returns:
      (B, L) bool, True where masked.
    """
    draws = torch.rand(len(ratios), length, generator=generator, device=ratios.device)
    rank = draws.argsort(dim=-1).argsort(dim=-1)  # 0 is the slot most willing to be masked
    if noise == "bernoulli":
        return (draws < ratios[:, None]) | (rank == 0)
    if noise == "count":
        return rank < torch.ceil(ratios * length).clamp(1, length)[:, None]
    raise ValueError(f"unknown noise {noise!r}: choose one of {', '.join(NOISES)}")


def complementary_rows(is_masked: Tensor) -> Tensor:
    """(B, 2, L) masks: the given ones and their complements; together they cover every slot exactly once."""
    return torch.stack([is_masked, ~is_masked], dim=1)


def mask_actions(actions: Tensor, is_masked: Tensor) -> Tensor:
    """Action ids with `MASKED` where `is_masked`; the two broadcast, as in (B, 1, L) with (B, 2, L)."""
    return torch.where(is_masked, MASKED, actions)
