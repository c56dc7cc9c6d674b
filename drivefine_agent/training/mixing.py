"""Which examples an optimizer step sees: several sources mixed by ratio, every order a function of the seed.

Each source is an endless stream of passes over its examples, every pass in an order of its own. An epoch is
one pass over the first source; the others give as many examples as their ratio to the first asks for, and go
on in the next epoch where they stopped, so that no example is seen twice before all have been seen once.
Nothing but (seed, purpose, step) decides, so a resumed run and any number of loader processes see the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from drivefine_agent.training.seeds import generator_for


class Mixture(NamedTuple):
    """Sizes and shares of S sources."""

    sizes: tuple[int, ...]
    """(S,) number of examples, at least 1 each."""
    ratios: tuple[float, ...]
    """(S,) positive weights; only their proportions matter."""

    @property
    def visits(self) -> tuple[int, ...]:
        """(S,) examples of each source in an epoch."""
        first = self.sizes[0]
        return first, *(max(1, round(first * ratio / self.ratios[0])) for ratio in self.ratios[1:])

    def num_epoch_steps(self, batch_size: int) -> int:
        """Steps per epoch; the last batch is filled from the start of the epoch's order."""
        return math.ceil(sum(self.visits) / batch_size)


def mixed_batch(
    mixture: Mixture, batch_size: int, seed: int, purpose: str, step: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The examples of one optimizer step.

    With a single source these are the scenes of `phase.batch_order`.

    Args:
      mixture: what to mix.
      batch_size: B.
      seed: of the run.
      purpose: name of the order.
      step: 0-based, over all epochs.

    Returns:
      (B,) source of each example and (B,) its position in that source.
    """
    per_epoch = mixture.num_epoch_steps(batch_size)
    sources, positions = _epoch_order(mixture, seed, purpose, step // per_epoch)
    chosen = np.resize(np.arange(len(sources)), per_epoch * batch_size)
    chosen = chosen[step % per_epoch * batch_size :][:batch_size]
    return sources[chosen], positions[chosen]


@functools.lru_cache(maxsize=4)
def _epoch_order(
    mixture: Mixture, seed: int, purpose: str, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(V,) sources and (V,) positions of an epoch's V examples, in order."""
    visits = mixture.visits
    sources = np.repeat(np.arange(len(visits)), visits)
    if len(visits) > 1:
        sources = sources[_permutation(len(sources), seed, f"{purpose} of sources", epoch)]
    positions = np.empty(len(sources), dtype=np.int64)
    for source, (size, count) in enumerate(zip(mixture.sizes, visits, strict=True)):
        own = purpose if source == 0 else f"{purpose} of source {source}"
        positions[sources == source] = _stretch(size, epoch * count, count, seed, own)
    return sources, positions


def _stretch(size: int, start: int, count: int, seed: int, purpose: str) -> NDArray[np.int64]:
    """(count,) entries from `start` on of the endless stream of shuffled passes over `size` examples."""
    first, last = start // size, (start + count - 1) // size
    passes: Sequence[NDArray[np.int64]] = [
        _permutation(size, seed, purpose, number) for number in range(first, last + 1)
    ]
    return np.concatenate(passes)[start - first * size :][:count]


def _permutation(size: int, seed: int, purpose: str, index: int) -> NDArray[np.int64]:
    return torch.randperm(size, generator=generator_for(seed, purpose, index)).numpy()
