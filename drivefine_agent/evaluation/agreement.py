"""How well numbers that were predicted agree with what came true: correlation, ranks, calibration.

Ties share their mean rank throughout. Where a measure is not defined, such as the correlation with a
constant, it is NaN. Shapes: R things.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def ranks(values: FloatArray) -> FloatArray:
    """(R,) 1 for the smallest; equal values share their mean rank."""
    return pd.Series(values).rank(method="average").to_numpy(dtype=np.float64)


def pearson(first: FloatArray, second: FloatArray) -> float:
    """Linear correlation, NaN where one of them does not vary."""
    a, b = first - first.mean(), second - second.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 1e-12 * max(1, len(a)) else float("nan")


def spearman(first: FloatArray, second: FloatArray) -> float:
    """Correlation of the ranks, NaN where one of them does not vary."""
    return pearson(ranks(first), ranks(second))


def kendall(first: FloatArray, second: FloatArray) -> float:
    """Kendall's tau-b: pairs in the same order minus pairs in the opposite one, over those without a tie."""
    a = np.sign(first[:, None] - first)
    b = np.sign(second[:, None] - second)
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else float("nan")


def area_under_curve(predicted: FloatArray, is_positive: NDArray[np.bool_]) -> float:
    """Chance that a random positive is predicted higher than a random negative, a tie counting half.

    NaN where there are only positives or only negatives. Mann and Whitney's U over the number of pairs.
    """
    num_positive = int(is_positive.sum())
    num_negative = len(is_positive) - num_positive
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    rank_sum = ranks(predicted)[is_positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def brier(predicted: FloatArray, true: FloatArray, weights: FloatArray) -> float:
    """Weighted mean squared error; NaN where the weights are all 0."""
    return _weighted_mean((predicted - true) ** 2, weights)


def reliability(
    predicted: FloatArray, true: FloatArray, weights: FloatArray, num_bins: int = 10
) -> list[dict[str, float]]:
    """Mean prediction and mean truth by bins of equal width in [0, 1]; empty bins are left out."""
    place = np.minimum((predicted * num_bins).astype(np.int64), num_bins - 1)
    rows = []
    for number in range(num_bins):
        inside = (place == number) & (weights > 0)
        if inside.any():
            rows.append(
                {
                    "low": number / num_bins,
                    "high": (number + 1) / num_bins,
                    "weight": float(weights[inside].sum()),
                    "predicted": _weighted_mean(predicted[inside], weights[inside]),
                    "true": _weighted_mean(true[inside], weights[inside]),
                }
            )
    return rows


def calibration_error(rows: list[dict[str, float]]) -> float:
    """Expected calibration error: mean distance of prediction and truth over the bins of `reliability`."""
    total = sum(row["weight"] for row in rows)
    if total == 0:
        return float("nan")
    return sum(row["weight"] * abs(row["predicted"] - row["true"]) for row in rows) / total


def _weighted_mean(values: FloatArray, weights: FloatArray) -> float:
    total = weights.sum()
    return float((values * weights).sum() / total) if total > 0 else float("nan")
