"""Which frames are neighbours, and how much each second-stage sample counts.

Source: pdm-scorer 4.16 and 4.17; NAVSIM v2.2, run_pdm_score_one_stage.py and scene_aggregator.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from drivefine_agent.scoring.extended_comfort import MAX_FRAME_INTERVAL_S
from drivefine_agent.scoring.types import FloatArray

KERNEL_VARIANCE_M2 = 0.1
"""sigma^2 of the Gaussian that weighs second-stage samples by distance."""

_ALMOST_ZERO = 1e-8  # numpy's isclose


def start_seconds(timestamp_us: int) -> float:
    """A time stamp in seconds as nuPlan computes it; intervals are differences of such doubles."""
    return timestamp_us * 1e-6


def adjacent_pairs(frames: Iterable[tuple[str, str, int]]) -> dict[str, str]:
    """The predecessor of every frame that has one close enough for extended comfort.

    Args:
      frames: (token, log name, time stamp in microseconds) of first-stage samples, in any order.

    Returns:
      Token of the frame just before in the same log, by token, where that is at most 0.55 s earlier. Frames
      of one log at the same time are ordered as given, as pandas' stable sort would.
    """
    logs: dict[str, list[tuple[int, str]]] = {}
    for token, log_name, timestamp_us in frames:
        logs.setdefault(log_name, []).append((timestamp_us, token))
    pairs = {}
    for entries in logs.values():
        for (earlier, previous), (later, token) in pairwise(sorted(entries, key=lambda entry: entry[0])):
            if start_seconds(later) - start_seconds(earlier) <= MAX_FRAME_INTERVAL_S:
                pairs[token] = previous
    return pairs


def follow_up_weights(endpoint_xy: ArrayLike, start_xy: Sequence[ArrayLike] | FloatArray) -> FloatArray:
    """Weights of the second-stage samples that may follow a first-stage prediction.

    Args:
      endpoint_xy: (2,) global position of the prediction's last pose (not of the simulated end) [m].
      start_xy: (n, 2) global rear-axle positions at which the samples start [m], n >= 1.

    Returns:
      (n,) proportional to exp(-distance^2 / (2 x 0.1 m^2)), sum 1; uniform where all are practically zero.

    Raises:
      ValueError: wrong shapes or values that are not finite.
    """
    end, starts = np.asarray(endpoint_xy, dtype=np.float64), np.asarray(start_xy, dtype=np.float64)
    if end.shape != (2,) or starts.ndim != 2 or starts.shape[1] != 2 or len(starts) == 0:
        raise ValueError(f"end_xy must be (2,) and starts_xy (n >= 1, 2), got {end.shape} and {starts.shape}")
    if not (np.isfinite(end).all() and np.isfinite(starts).all()):
        raise ValueError("end_xy and starts_xy must be finite, got others")
    kernel = np.exp(-np.sum((starts - end) ** 2, axis=1) / (2.0 * KERNEL_VARIANCE_M2))
    total = kernel.sum()
    if total <= _ALMOST_ZERO:
        return np.full(len(starts), 1.0 / len(starts))
    return np.asarray(kernel / total)
