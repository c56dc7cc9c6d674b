"""From the scores of two stages to one number: NAVSIM 2's pseudo closed loop.

A mapping group is a first-stage sample ("now", n), the one half a second earlier ("previous", p), and pairs
of second-stage samples that start near where n and p may end. Per group and column, f is the first-stage
value and g the weighted mean of the second-stage values:

    combined = mean over groups of (f_n g_n + f_p g_p) / 2
    stage one = mean over groups and both members of f;  stage two = the same of g

Source: pdm-scorer 4.17; NAVSIM v2.2, run_pdm_score.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from drivefine_agent.scoring.types import FloatArray


@dataclass(frozen=True)
class GroupValues:
    """One mapping group, in C columns."""

    first_now: FloatArray
    """(C,) f_n."""
    second_now: FloatArray
    """(C,) g_n."""
    first_previous: FloatArray
    """(C,) f_p."""
    second_previous: FloatArray
    """(C,) g_p."""

    @property
    def combined(self) -> FloatArray:
        """(C,) (f_n g_n + f_p g_p) / 2."""
        return (self.first_now * self.second_now + self.first_previous * self.second_previous) / 2.0


@dataclass(frozen=True)
class StageMeans:
    """Means over groups, in C columns; NaN without any group."""

    stage_one: FloatArray
    stage_two: FloatArray
    combined: FloatArray


def weighted_mean(values: ArrayLike, weights: ArrayLike) -> FloatArray:
    """(C,) mean of values (n, C) with weights (n,) that need not sum to 1.

    Raises:
      ValueError: wrong shapes, or weights that sum to 0.
    """
    table, weight = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if table.ndim != 2 or weight.shape != table.shape[:1]:
        raise ValueError(f"expected values (n, C) and weights (n,), got {table.shape} and {weight.shape}")
    total = weight.sum()
    if not total > 0.0:
        raise ValueError(f"expected weights with a positive sum, got {total}")
    return np.asarray((table * weight[:, None]).sum(axis=0) / total)


def stage_means(groups: Sequence[GroupValues], num_columns: int) -> StageMeans:
    """The three summaries of mapping groups."""
    if not groups:
        nothing = np.full(num_columns, np.nan)
        return StageMeans(nothing, nothing, nothing)
    first = [values for group in groups for values in (group.first_now, group.first_previous)]
    second = [values for group in groups for values in (group.second_now, group.second_previous)]
    return StageMeans(
        stage_one=np.mean(first, axis=0),
        stage_two=np.mean(second, axis=0),
        combined=np.mean([group.combined for group in groups], axis=0),
    )
