"""How many slots are committed in each denoising step.

A schedule is a curve F over diffusion time with F(0) = 0 and F(1) = 1; the number of slots still masked when
time t is left is about n F(t). The counts follow LaViDa's rule to the token (floor, at least one per step,
surplus taken from the front, reversed), so that published settings mean the same here.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

ScheduleName = Literal["cosine", "linear", "shift", "maskgit"]
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)

PAPER_SHIFT_ALPHA = 1.0 / 3.0
"""LaViDa's recommended value for few steps: many tokens early. Its code falls back to 3, the bad choice."""


def unmask_quotas(
    num_tokens: int, num_steps: int, schedule: ScheduleName = "cosine", shift_alpha: float = PAPER_SHIFT_ALPHA
) -> tuple[int, ...]:
    """Number of tokens to commit in each denoising step: at least 1 each, `num_tokens` in total.

    Args:
      num_tokens: length of the answer.
      num_steps: in 1 .. num_tokens.
      schedule: `cosine` is LaViDa's raised (1 - cos(pi t)) / 2, `maskgit` the quarter wave cos(pi t / 2),
        `shift` is a t / (1 + (a - 1) t).
      shift_alpha: a > 0 of `shift`; below 1 it commits many tokens early.

    Raises:
      ValueError: if a step would have nothing to commit, or the schedule is unknown.
    """
    if not 1 <= num_steps <= num_tokens:
        raise ValueError(
            f"num_steps must be in 1..{num_tokens}, one token per step at least, got {num_steps}: lower it"
        )
    if schedule == "maskgit":
        return _maskgit_quotas(num_tokens, num_steps)
    counts = _cumulative_counts(num_tokens, num_steps, schedule, shift_alpha)
    quotas = [max(1, after - before) for before, after in pairwise(counts)]
    surplus = sum(quotas) - num_tokens
    while surplus > 0:
        for i in range(num_steps):
            if surplus > 0 and quotas[i] > 1:
                quotas[i] -= 1
                surplus -= 1
    return tuple(reversed(quotas))


def _cumulative_counts(num_tokens: int, num_steps: int, schedule: str, shift_alpha: float) -> list[int]:
    """floor(n F(i / s)) for i = 0 .. s."""
    if schedule == "linear":
        return [num_tokens * i // num_steps for i in range(num_steps + 1)]
    # In float32, as LaViDa computes it: n F(1/2) and n F(2/3) of the cosine are integers but for rounding.
    times = torch.linspace(0.0, 1.0, num_steps + 1, dtype=torch.float32, device="cpu")
    counts = torch.floor(_curve(times, schedule, shift_alpha) * num_tokens).int().tolist()
    return [*counts[:-1], num_tokens]  # F(1) = 1 but for rounding


def _curve(t: Tensor, schedule: str, shift_alpha: float) -> Tensor:
    if schedule == "cosine":
        return (1.0 - torch.cos(t * math.pi)) / 2.0
    if schedule == "shift":
        if shift_alpha <= 0.0:
            raise ValueError(f"shift_alpha must be positive, got {shift_alpha}")
        return shift_alpha * t / (1.0 + (shift_alpha - 1.0) * t)
    raise ValueError(f"unknown schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}")


def _maskgit_quotas(num_tokens: int, num_steps: int) -> tuple[int, ...]:
    """Floor of n cos(pi t / 2) still masked after each step, and at least one token committed in each."""
    quotas, masked = [], num_tokens
    for i in range(1, num_steps + 1):
        curve = math.floor(num_tokens * math.cos(math.pi / 2.0 * i / num_steps) + 1e-6)  # cos(pi / 3) is 0.5
        left = max(min(masked - 1, curve), num_steps - i)
        quotas.append(masked - left)
        masked = left
    return tuple(quotas)
