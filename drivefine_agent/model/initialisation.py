"""Ordinal initialisation of the action tables: neighbouring values start with neighbouring rows.

A row is the mean of some existing rows plus random Fourier features of the row's *value*, scaled to the
spread of the existing rows. Wavelengths are spaced geometrically from twice the table's range down to a few
bins, so that a row tells both roughly and precisely where its value lies, and the similarity of two rows
falls smoothly with their distance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drivefine_agent.actions import ActionSpec, ValueGrid

SHORTEST_WAVELENGTH_BINS = 8.0
"""Neighbouring bins differ by an eighth of a turn at most: they start close, but not equal."""


def fourier_features(grid: ValueGrid, num_frequencies: int) -> Tensor:
    """(num_bins, 2 * num_frequencies) float32 cosines, then sines, of each value of the grid."""
    bins = torch.arange(grid.num_bins, dtype=torch.float64) - grid.zero_index
    longest = 2.0 * grid.num_bins
    wavelengths = torch.logspace(
        math.log2(longest),
        math.log2(SHORTEST_WAVELENGTH_BINS),
        num_frequencies,
        base=2.0,
        dtype=torch.float64,
    )
    angles = 2.0 * math.pi * bins[:, None] / wavelengths
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def ordinal_rows(
    spec: ActionSpec, mean: Tensor, std: float, generator: torch.Generator | None = None
) -> Tensor:
    """Rows of an action table.

    Args:
      spec: the action vocabulary.
      mean: (D,) common part of all rows, e.g. the mean of the digit rows of the base table.
      std: spread of the rows around it, e.g. that of the base table.
      generator: of the random mixing of the features.

    Returns:
      (num_actions, D) float32.
    """
    features = ordinal_features(spec, len(mean))
    rows = []
    for part in (features[: spec.heading_offset], features[spec.heading_offset :]):
        mixing, _ = torch.linalg.qr(torch.randn(len(mean), len(mean), generator=generator))
        rows.append(part @ mixing * std)  # orthonormal: distances between rows are kept
    return torch.cat(rows) + mean.float().cpu()


def ordinal_features(spec: ActionSpec, width: int) -> Tensor:
    """(num_actions, width) float32 features of every action's value, of mean square 1.

    The last column of an odd width is 0.
    """
    count = width // 2
    features = torch.cat([fourier_features(grid, count) for grid in (spec.spatial_m, spec.heading_deg)])
    return torch.nn.functional.pad(features * math.sqrt(width / count), (0, width - 2 * count))
