"""Advantages and losses of GRPO and hybrid reinforcement learning: pure functions of tensors.

Shapes: B scenes, G samples per scene, A anchors, M targets per anchor, L = 24 tokens. All losses are to be
minimised: they are the negatives of the paper's objectives. A sample whose reward is unknown (`is_valid`
False) leaves means, advantages and every loss term; a scene without any valid sample adds zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    """One term of a loss, with what is worth watching of it."""

    total: Tensor
    """() to be minimised."""
    kl: Tensor
    """() mean KL divergence to the reference [nat per token], not weighted; 0 without a reference."""
    clipped_share: Tensor
    """() share of the counted ratios outside 1 - epsilon .. 1 + epsilon."""


def group_advantages(rewards: Tensor, is_valid: Tensor) -> Tensor:
    """Equation 2: each reward against the mean of its group, not divided by the standard deviation.

    Args:
      rewards: (B, G); anything where not valid.
      is_valid: (B, G) bool.

    Returns:
      (B, G), 0 where not valid.
    """
    known = torch.where(is_valid, rewards, 0.0)
    mean = known.sum(-1, keepdim=True) / is_valid.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(is_valid, known - mean, 0.0)


def pair_advantages(anchor_rewards: Tensor, target_rewards: Tensor) -> Tensor:
    """Equations 5 and 6: what a target is worth more than its anchor.

    Args:
      anchor_rewards: (B, A).
      target_rewards: (B, A, M) rewards of each anchor's own refinements (online), or (B, 1, M) of answers
        that all anchors share (offline; antisymmetric where they are the anchors themselves).

    Returns:
      (B, A, M).
    """
    return target_rewards - anchor_rewards[..., None]


def grpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    reference_log_probs: Tensor | None,
    advantages: Tensor,
    is_valid: Tensor,
    epsilon: float,
    beta: float,
) -> PolicyLoss:
    """Equation 3 with its sign changed: clipped policy gradient of the generator and KL to the reference.

    Args:
      log_probs: (B, G, L) of every token at its group's state, with gradient.
      old_log_probs: (B, G, L) before the update.
      reference_log_probs: (B, G, L) under the frozen reference; None where beta = 0.
      advantages: (B, G) from `group_advantages`.
      is_valid: (B, G) bool.
      epsilon: how far ratios may move.
      beta: weight of the KL divergence.
    """
    gain, clipped_share = _clipped_gain(log_probs, old_log_probs, advantages, epsilon, is_valid)
    total = -_masked_mean(gain.mean(-1), is_valid).mean()
    if reference_log_probs is None:
        return PolicyLoss(total, torch.zeros_like(total), clipped_share)
    kl = _masked_mean(kl_k3(log_probs, reference_log_probs).mean(-1), is_valid).mean()
    return PolicyLoss(total + beta * kl, kl.detach(), clipped_share)


def refiner_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    is_valid: Tensor,
    epsilon: float,
    min_advantage: float = 0.0,
    log_prob_floor: float | None = None,
) -> PolicyLoss:
    """One of the two terms of equation 7' with its sign changed: pull to better, push from worse targets.

    Args:
      log_probs: (B, A, M, L) of target tokens given the anchor, with gradient.
      old_log_probs: (B, A, M, L) before the update.
      advantages: (B, A, M) from `pair_advantages`.
      is_valid: (B, A, M) bool: both rewards of the pair are known.
      epsilon: how far ratios may move; has no say in the first update.
      min_advantage: pairs that differ by less add nothing.
      log_prob_floor: tokens already less likely than this are not pushed down further; None: no floor.
    """
    counts = advantages.abs() >= min_advantage
    known = torch.where(is_valid & counts, advantages, 0.0)
    gain, clipped_share = _clipped_gain(log_probs, old_log_probs, known, epsilon, is_valid)
    if log_prob_floor is not None:
        is_spared = (known < 0)[..., None] & (log_probs.detach() < log_prob_floor)
        gain = torch.where(is_spared, 0.0, gain)
    per_anchor = _masked_mean(gain.mean(-1), is_valid)  # (B, A)
    total = -_masked_mean(per_anchor, is_valid.any(-1)).mean()
    return PolicyLoss(total, torch.zeros_like(total), clipped_share)


def kl_k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """(...) estimate of the KL divergence to the reference per token, never negative: e^d - d - 1."""
    difference = reference_log_probs - log_probs
    return difference.exp() - difference - 1.0


def _clipped_gain(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, epsilon: float, is_valid: Tensor
) -> tuple[Tensor, Tensor]:
    """(..., L) min(ratio A, clip(ratio) A) of each token, and the share of ratios that were clipped."""
    ratio = (log_probs - old_log_probs).exp()
    advantage = advantages[..., None]
    gain = torch.minimum(ratio * advantage, ratio.clamp(1.0 - epsilon, 1.0 + epsilon) * advantage)
    is_clipped = ((ratio.detach() - 1.0).abs() > epsilon).float().mean(-1)
    num_valid = is_valid.sum().clamp(min=1)
    return gain, torch.where(is_valid, is_clipped, 0.0).sum() / num_valid


def _masked_mean(values: Tensor, is_valid: Tensor) -> Tensor:
    """(...) mean over the last axis of the valid entries; 0 where there are none."""
    return torch.where(is_valid, values, 0.0).sum(-1) / is_valid.sum(-1).clamp(min=1)
