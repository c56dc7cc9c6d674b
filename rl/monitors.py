"""What is worth watching of a step: whether it learns, and whether it learns to please the metric only.

Each function returns scalars by name and, beside each, the number of things that it is a mean of, so that
means over micro-batches and processes are exact.

Shapes: B scenes, G samples, A anchors, M targets, K refinements, L = 24 slots.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drivefine_agent.actions import ActionSpec
from drivefine_agent.constants import NUM_POSE_FIELDS
from drivefine_agent.evaluation.agreement import pearson, spearman
from drivefine_agent.geometry.indices import PoseIndex
from rl.objectives import PolicyLoss
from rl.rewards import SUB_SCORES, Scores

Scalars = dict[str, tuple[float, float]]
"""Name to (mean, number of things)."""

_BACKWARD_M = 0.05
"""Motion between two poses below this is that of the action grid, not backward driving."""


class Means:
    """Weighted means over the micro-batches of a step."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(self, scalars: Mapping[str, tuple[float, float]]) -> None:
        """Takes in what a function of this module gave."""
        for name, (mean, count) in scalars.items():
            self._sums[name] = self._sums.get(name, 0.0) + (mean * count if count else 0.0)
            self._counts[name] = self._counts.get(name, 0.0) + count

    def result(self) -> tuple[dict[str, float], dict[str, float]]:
        """Means (NaN where nothing was counted) and counts, for `Engine.mean`."""
        means = {
            name: total / self._counts[name] if self._counts[name] else float("nan")
            for name, total in self._sums.items()
        }
        return means, dict(self._counts)


def reward_scalars(scores: Scores, prefix: str) -> Scalars:
    """Rewards, all sub-scores, unknown rewards.

    Args:
      scores: (B, P) of trajectories.
      prefix: of the names.
    """
    is_valid = scores.is_valid
    count = float(is_valid.sum())
    rewards = scores.rewards[is_valid]
    scalars: Scalars = {f"{prefix}/reward": (_mean(rewards), count)}
    for i, name in enumerate(SUB_SCORES):
        scalars[f"{prefix}/{name}"] = (_mean(scores.sub_scores[..., i][is_valid]), count)
    scalars[f"{prefix}/masked_share"] = (float((~is_valid).mean()), float(is_valid.size))
    return scalars


def group_scalars(rewards: NDArray[np.float64]) -> Scalars:
    """Spread of the rewards within groups (B, G), NaN where unknown; groups without any teach nothing."""
    known = [group[np.isfinite(group)] for group in rewards]
    spreads = [float(group.std()) for group in known if len(group)]
    are_equal = [float(group.max() - group.min() < 1e-9) if len(group) else 1.0 for group in known]
    return {
        "group/reward_std": (_mean(np.array(spreads)), float(len(spreads))),
        "group/zero_variance_share": (_mean(np.array(are_equal)), float(len(known))),
    }


def agreement_scalars(scores: Scores, prefix: str) -> Scalars:
    """How a learned scorer's predictions agree with the truth: correlations within groups, mean error of all.

    Nothing without a scorer. Groups whose true or predicted scores are all equal have no correlation and do
    not count.

    Args:
      scores: (B, P) of trajectories, groups of P.
      prefix: of the names.
    """
    if scores.predicted is None:
        return {}
    known = scores.is_valid
    pairs = [
        (predicted[rows], true[rows])
        for predicted, true, rows in zip(scores.predicted, scores.rewards, known, strict=True)
    ]
    linear = np.array([pearson(*pair) for pair in pairs if len(pair[0]) > 1])
    ranked = np.array([spearman(*pair) for pair in pairs if len(pair[0]) > 1])
    linear, ranked = linear[np.isfinite(linear)], ranked[np.isfinite(ranked)]
    error = np.abs(scores.predicted - scores.rewards)[known]
    return {
        f"{prefix}/scorer_pearson": (_mean(linear), float(linear.size)),
        f"{prefix}/scorer_spearman": (_mean(ranked), float(ranked.size)),
        f"{prefix}/scorer_error": (_mean(error), float(error.size)),
        f"{prefix}/predicted_score": (_mean(scores.predicted[known]), float(error.size)),
    }


def trajectory_scalars(actions: Tensor, poses: NDArray[np.float64], spec: ActionSpec, prefix: str) -> Scalars:
    """Signs of reward hacking in trajectories.

    Args:
      actions: (B, P, L) action ids.
      poses: (B, P, 8, 3) the same as poses.
      spec: of the action tables.
      prefix: of the names.
    """
    edges = is_at_table_edge(actions, spec).float()
    backward = drives_backward(poses)
    return {
        f"{prefix}/backward_share": (float(backward.mean()), float(backward.size)),
        f"{prefix}/table_edge_share": (float(edges.mean()), float(edges.numel())),
    }


def drives_backward(poses: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(...) whether any step from one pose to the next has a component against the heading at its start.

    Args:
      poses: (..., 8, 3) x [m], y [m], heading [rad]; the first step starts from the origin.
    """
    start = np.concatenate([np.zeros((*poses.shape[:-2], 1, NUM_POSE_FIELDS)), poses[..., :-1, :]], axis=-2)
    motion = poses - start
    heading = start[..., PoseIndex.HEADING]
    forward = motion[..., PoseIndex.X] * np.cos(heading) + motion[..., PoseIndex.Y] * np.sin(heading)
    return np.asarray((forward < -_BACKWARD_M).any(axis=-1))


def is_at_table_edge(actions: Tensor, spec: ActionSpec) -> Tensor:
    """(..., L) whether a token is the first or last of its table, beyond which nothing can be said."""
    is_heading = torch.arange(actions.shape[-1], device=actions.device) % NUM_POSE_FIELDS == PoseIndex.HEADING
    first = torch.where(is_heading, spec.heading_offset, 0)
    last = torch.where(is_heading, spec.num_actions - 1, spec.spatial_m.num_bins - 1)
    return (actions == first) | (actions == last)


def refinement_scalars(anchors: NDArray[np.float64], refined: NDArray[np.float64]) -> Scalars:
    """What refinement is worth on its own anchors.

    Args:
      anchors: (B, A) rewards, NaN where unknown.
      refined: (B, A K) rewards of the anchors' refinements, K of each in a row.
    """
    gain = refined.reshape(*anchors.shape, -1) - anchors[..., None]
    gain = gain[np.isfinite(gain)]
    count = float(gain.size)
    return {
        "refinement/accepted_share": (_mean(gain > 0), count),
        "refinement/worse_share": (_mean(gain < 0), count),
        "refinement/gain": (_mean(gain), count),
    }


def loss_scalars(loss: PolicyLoss, prefix: str, num_scenes: int) -> Scalars:
    """One term of the loss; KL divergence for the generator only, which alone has a reference."""
    scalars: Scalars = {
        f"{prefix}/loss": (float(loss.total.detach()), float(num_scenes)),
        f"{prefix}/clipped_share": (float(loss.clipped_share), float(num_scenes)),
    }
    if prefix == "generator":
        scalars["generator/kl"] = (float(loss.kl), float(num_scenes))
    return scalars


def worse_target_scalars(log_probs: Tensor, advantages: Tensor, is_valid: Tensor, prefix: str) -> Scalars:
    """How far worse targets were pushed down: mean log-probability of their tokens.

    Args:
      log_probs: (B, A, M, L).
      advantages: (B, A, M).
      is_valid: (B, A, M) bool.
      prefix: of the names.
    """
    is_worse = is_valid & (advantages < 0)
    mean = torch.where(is_worse, log_probs.detach().mean(-1), 0.0).sum() / is_worse.sum().clamp(min=1)
    return {f"{prefix}/worse_target_log_prob": (float(mean), float(is_worse.sum()))}


def entropy_scalars(generator: Tensor | None, refiner: Tensor | None) -> Scalars:
    """Entropy [nat] of both experts' distributions; a collapse ends exploration."""
    named = {"generator/entropy": generator, "refiner/entropy": refiner}
    return {name: (float(e.mean()), float(e.numel())) for name, e in named.items() if e is not None}


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    return float(values.mean()) if values.size else float("nan")
