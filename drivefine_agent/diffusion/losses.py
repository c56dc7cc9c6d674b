"""Cross-entropy on answers: the generator's complementary-masking loss and the refiner's full one.

Shapes: B scenes, N answers per scene, L slots.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from drivefine_agent.answer import AnswerLogits

LossWeightName = Literal["uniform", "inverse_ratio"]
LOSS_WEIGHTS: tuple[str, ...] = get_args(LossWeightName)


class AnswerLoss(NamedTuple):
    """A loss and its parts."""

    total: Tensor
    """() to be minimised."""
    spatial_nll: Tensor
    """() mean negative log-likelihood of x and y slots [nat], unweighted, not smoothed, detached."""
    heading_nll: Tensor
    """() the same of heading slots."""


def answer_cross_entropy(
    logits: AnswerLogits, targets: Tensor, weights: Tensor | None = None, label_smoothing_bins: float = 0.0
) -> AnswerLoss:
    """Weighted mean cross-entropy over all slots.

    Args:
      logits: (B, N, ...) of N answers per scene.
      targets: (B, N, L) or (B, 1, L) action ids.
      weights: (B, N, L) or broadcastable, of each slot's term; None: all 1. The sum is divided by the number
        of slots, not by the sum of the weights.
      label_smoothing_bins: standard deviation [bins] of a Gaussian over the neighbours of the target bin, cut
        at three deviations and at the table's edge; 0: the target bin alone. Off in the paper; a small model
        learns faster from neighbouring bins.
    """
    log_probs = logits.log_probs(targets)
    terms = (
        -log_probs if label_smoothing_bins == 0.0 else _smoothed_nll(logits, targets, label_smoothing_bins)
    )
    if weights is not None:
        terms = terms * weights
    nll = -log_probs.detach().unflatten(-1, (-1, 3))
    return AnswerLoss(terms.mean(), nll[..., :2].mean(), nll[..., 2].mean())


def masked_pair_weights(
    is_masked: Tensor, ratios: Tensor, loss_weight: LossWeightName = "uniform"
) -> Tensor | None:
    """Weights of the slots of a complementary pair, each of which is scored in the row where it is masked.

    `uniform` is LaViDa's plain mean. `inverse_ratio` is the likelihood bound's 1/t: a row with mask ratio t
    counts 1/t, its complement 1/(1 - t); a constant 1/2 makes the pair an average of its two rows.

    Args:
      is_masked: (B, L) mask of the pair's first row.
      ratios: (B,) mask ratios of the first row.
      loss_weight: which weighting.

    Returns:
      (B, 1, L), or None for all 1.
    """
    if loss_weight == "uniform":
        return None
    if loss_weight == "inverse_ratio":
        first = ratios[:, None].clamp(min=1e-3)
        second = (1.0 - ratios[:, None]).clamp(min=1e-3)
        return torch.where(is_masked, 0.5 / first, 0.5 / second)[:, None]
    raise ValueError(f"unknown loss weight {loss_weight!r}: choose one of {', '.join(LOSS_WEIGHTS)}")


def pair_scored_row(is_masked: Tensor) -> Tensor:
    """(B, 1, L) the row, 0 or 1, of a complementary pair in which each slot is masked and hence scored."""
    return (~is_masked).long()[:, None]


def _smoothed_nll(logits: AnswerLogits, targets: Tensor, sigma_bins: float) -> Tensor:
    """(B, N, L) cross-entropy against a Gaussian over neighbouring bins, renormalised at the table's edge."""
    radius = math.ceil(3.0 * sigma_bins)
    offsets = torch.arange(-radius, radius + 1, device=targets.device)  # (W,)
    kernel = torch.exp(-0.5 * (offsets / sigma_bins) ** 2)
    num_spatial, num_heading = logits.spatial.shape[-1], logits.heading.shape[-1]
    classes = targets.unflatten(-1, (-1, 3))  # (B, N, T, 3)
    parts = []
    for values, target, first, size in (
        (logits.spatial, classes[..., :2], 0, num_spatial),
        (logits.heading, classes[..., 2], num_spatial, num_heading),
    ):
        neighbours = target[..., None] - first + offsets  # (..., W)
        weight = kernel * ((neighbours >= 0) & (neighbours < size))
        weight = weight / weight.sum(-1, keepdim=True)
        index = neighbours.clamp(0, size - 1)
        lead = torch.broadcast_shapes(values.shape[:-1], index.shape[:-1])
        picked = values.expand(*lead, size).gather(-1, index.expand(*lead, len(offsets)))
        term = -(weight * picked).sum(-1)
        parts.append(term + torch.logsumexp(values, -1) if logits.log_normalizer is None else term)
    spatial, heading = parts
    terms = torch.cat([spatial, heading[..., None]], -1).flatten(-2)
    return terms if logits.log_normalizer is None else terms + logits.log_normalizer
