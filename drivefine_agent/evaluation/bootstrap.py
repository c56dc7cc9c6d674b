"""Paired bootstrap intervals: how sure is it that one agent scores higher than another on the same scenes?

Both agents drove the same scenes, so the quantity resampled is the per-scene difference. A resample draws n
of the n differences with replacement; the interval is the percentile interval of its mean (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_RESAMPLES = 10_000
"""The Monte Carlo error of a 2.5 % point is then about 1.5 % of the interval's width."""

_CHUNK_ELEMENTS = 4_000_000  # draws held at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float
    num_scenes: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero: significant at the interval's level."""
        return self.low > 0.0 or self.high < 0.0


def bootstrap_means(
    values: ArrayLike, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Means of `num_resamples` resamples of `values`, with replacement.

    Args:
      values: (n,) finite numbers, n >= 1.
      num_resamples: how many.
      seed: of numpy's PCG64; equal seeds give equal results.

    Returns:
      (num_resamples,) in the order drawn.

    Raises:
      ValueError: if `values` is not one-dimensional, is empty or holds a NaN or infinity.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"expected values of shape (n,) with n >= 1, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(
            f"expected finite values, got {np.sum(~np.isfinite(array))} others: drop failed scenes in pairs"
        )
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_ELEMENTS // array.size)
    means = np.empty(num_resamples)
    for start in range(0, num_resamples, chunk):
        stop = min(start + chunk, num_resamples)
        drawn = generator.integers(0, array.size, size=(stop - start, array.size))
        means[start:stop] = array[drawn].mean(axis=1)
    return means


def bootstrap_interval(
    values: ArrayLike, level: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval of the mean of `values` (n,); see `bootstrap_means` for what raises."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    array = np.asarray(values, dtype=np.float64)
    means = bootstrap_means(array, num_resamples, seed)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(array.mean()), float(low), float(high), array.size)


def clustered_interval(
    values: ArrayLike,
    clusters: ArrayLike,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean of `values`, resampled by whole clusters (Davison and Hinkley, 3.8).

    Scenes of one drive resemble each other: resampled one by one they would seem surer than they are. A
    resample draws as many clusters as there are, with replacement, and takes the mean over their values.

    Args:
      values: (n,) finite numbers, n >= 1.
      clusters: (n,) which cluster each is in, such as its log's name.
      level: of the interval.
      num_resamples: how many.
      seed: of numpy's PCG64.

    Returns:
      The interval; its ends are NaN where there is only one cluster, which says nothing of others.

    Raises:
      ValueError: as `bootstrap_interval`, or there is not a cluster for each value.
    """
    array = np.asarray(values, dtype=np.float64)
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    if cluster.shape != array.shape:
        raise ValueError(
            f"clusters must be one for each of the values, got {cluster.shape} and {array.shape}"
        )
    sums, counts = np.bincount(cluster, weights=array), np.bincount(cluster)
    # Mean of a resample: its sum over its size, both sums over the drawn clusters.
    drawn_sums = bootstrap_means(sums, num_resamples, seed)
    drawn_counts = bootstrap_means(counts, num_resamples, seed)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn_sums / drawn_counts, [tail, 1.0 - tail])
    if len(counts) == 1:
        low = high = np.nan
    return Interval(float(array.mean()), float(low), float(high), array.size)


def paired_interval(
    first: ArrayLike,
    second: ArrayLike,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean of `first - second`, (n,) each, row i of both being the same scene."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"first and second must have one shape, got {a.shape} and {b.shape}")
    return bootstrap_interval(a - b, level, num_resamples, seed)
