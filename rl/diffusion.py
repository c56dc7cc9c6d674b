"""Reinforcement of the diffusion-head baseline: its policy, its loss and its settings (`model.md` 5.5).

ReCogDrive's DiffGRPO in our own words: a trajectory is the end of a chain of S stochastic DDIM steps, each of
them a Gaussian whose mean the head sets; so a chain has a density, and its gradient is weighed by how much
better its trajectory scored than its group's. Language model and vision stay frozen.

Shapes: B scenes, G samples, M imitated samples, S steps, poses (8, 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from drivefine_agent.diffusion.continuous import DDIMOptions, chain_log_probs
from drivefine_agent.training.optimization import OptimizerConfig
from rl.config import ReinforcementConfig, reinforcement_optimizer

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel
    from drivefine_agent.model.pose_head import PromptStates


@dataclass(frozen=True)
class DiffusionRolloutConfig:
    """How trajectories are sampled."""

    num_samples: int = 8
    """G."""
    num_steps: int = 5
    """S, of DDIM at eta = 1."""
    min_std: float = 0.04
    """Least standard deviation of a step: the last one explores too."""
    num_imitated: int = 8
    """M, samples of the starting model per scene that the head is kept close to."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.num_samples < 2 or self.num_imitated < 1:
            raise ValueError(
                "rollout.num_samples must be at least 2 and rollout.num_imitated at least 1, "
                f"got {self.num_samples} and {self.num_imitated}"
            )
        _ = self.options

    @property
    def options(self) -> DDIMOptions:
        """Stochastic DDIM."""
        return DDIMOptions(self.num_steps, eta=1.0, min_std=self.min_std)


@dataclass(frozen=True)
class DiffusionObjectiveConfig:
    """Policy gradient over chains."""

    discount: float = 0.6
    """To the power of the steps that remain after a step: early ones say less about the end."""
    log_prob_std: float = 0.1
    """Least standard deviation of the densities."""
    least_log_prob: float = -5.0
    greatest_log_prob: float = 2.0
    """Log-densities of single numbers beyond these have no gradient."""
    imitation: float = 0.1
    """Weight of the likelihood of the starting model's samples; 0 spares them."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 0.0 < self.discount <= 1.0 or not self.log_prob_std > 0.0 or self.imitation < 0.0:
            raise ValueError(
                "objective.discount must lie in (0, 1], objective.log_prob_std be positive and "
                f"objective.imitation not negative, got {self.discount}, {self.log_prob_std} and "
                f"{self.imitation}"
            )


@dataclass(frozen=True)
class TrainDiffusionConfig(ReinforcementConfig):
    """Configuration of `rl/train_diffusion.py`."""

    rollout: DiffusionRolloutConfig = field(default_factory=DiffusionRolloutConfig)
    objective: DiffusionObjectiveConfig = field(default_factory=DiffusionObjectiveConfig)
    head_optimizer: OptimizerConfig = field(default_factory=reinforcement_optimizer)
    """Of the diffusion head."""

    def __post_init__(self) -> None:
        """Checks rules between sections."""
        super().__post_init__()
        if self.reward.scorer_path is not None:
            raise ValueError(
                "the learned scorer reads action tokens, which a diffusion head has none of: leave "
                f"reward.scorer_path out, got {self.reward.scorer_path}"
            )

    @property
    def optimizers(self) -> dict[str, OptimizerConfig]:
        """By group of parameters."""
        return {"head": self.head_optimizer}


class DiffusionBatch(NamedTuple):
    """A micro-batch of B scenes with what was sampled in them."""

    prompt: PromptStates
    status: Tensor
    """(B, 20) ego status."""
    chains: Tensor
    """(B, G + M, S + 1, 8, 3): the policy's samples, then the starting model's; M = 0 without imitation."""


class DiffusionPolicy(nn.Module):
    """What the engine wraps: log-densities of the steps of chains."""

    def __init__(self, model: DriveFineModel, options: DDIMOptions, min_std: float) -> None:
        """Args: model with a diffusion head, how the chains were sampled, as in `chain_log_probs`."""
        super().__init__()
        self.model = model
        self.options = options
        self.min_std = min_std

    def forward(self, batch: DiffusionBatch) -> Tensor:
        """(B, G + M, S, 8, 3) with gradient."""
        return chain_log_probs(
            lambda noisy, times: self.model.predict_noise(batch.prompt, noisy, times, batch.status),
            batch.chains,
            self.options,
            self.min_std,
        )


class DiffusionLoss(NamedTuple):
    """The loss and its parts, to be minimised."""

    total: Tensor
    policy: Tensor
    imitation: Tensor
    """() mean negative log-density of a number of the starting model's samples; 0 without them."""


def standard_advantages(rewards: Tensor, is_valid: Tensor) -> Tensor:
    """(B, G) each reward's z-score within its group of valid ones; 0 where not valid, or where all are equal.

    Args:
      rewards: (B, G); anything where not valid.
      is_valid: (B, G) bool.
    """
    known = torch.where(is_valid, rewards, 0.0)
    count = is_valid.sum(-1, keepdim=True).clamp(min=1)
    centred = torch.where(is_valid, known - known.sum(-1, keepdim=True) / count, 0.0)
    std = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    return torch.where(std > 1e-6, centred / std.clamp(min=1e-6), 0.0)


def diffusion_loss(
    log_probs: Tensor, advantages: Tensor, is_valid: Tensor, config: DiffusionObjectiveConfig
) -> DiffusionLoss:
    """-mean of log-density x advantage x discount^(steps that remain), and imitation.

    Args:
      log_probs: (B, G + M, S, 8, 3) of the samples and of the imitated ones.
      advantages: (B, G).
      is_valid: (B, G) bool; others leave the mean.
      config: weights and limits.
    """
    num_samples, num_steps = advantages.shape[1], log_probs.shape[2]
    sampled, imitated = log_probs[:, :num_samples], log_probs[:, num_samples:]
    remaining = torch.arange(num_steps - 1, -1, -1, device=log_probs.device)
    limited = sampled.clamp(config.least_log_prob, config.greatest_log_prob).mean(dim=(-2, -1))  # (B, G, S)
    gain = (limited * config.discount**remaining).mean(-1) * advantages
    policy = -torch.where(is_valid, gain, 0.0).sum() / is_valid.sum().clamp(min=1)
    imitation = -imitated.mean() if imitated.shape[1] > 0 else torch.zeros_like(policy)
    return DiffusionLoss(policy + config.imitation * imitation, policy.detach(), imitation.detach())
