"""Training of a learned scorer on scored candidates; the planner is frozen and only read.

    minimise  mean over sub-scores of  sum of w BCE(predicted, true) / sum of w

True sub-scores of 0.5 are soft targets, and so is progress, any number in [0, 1]. The weight w of a candidate
is 1 for no at-fault collision, drivable area and driving direction, and NC x DAC for what is multiplied by it
in the score (`learned_scorer.CONDITIONAL`); what failed to be scored has none.

Shapes: S scenes, B of a step, N candidates of each, L = 24 slots, D width, K sub-scores.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from drivefine_agent.errors import DataError
from drivefine_agent.learned_scorer import CONDITIONAL, PREDICTED, candidate_states, poses_of
from drivefine_agent.model.scorer_head import ScorerHead
from drivefine_agent.planner import Planner
from drivefine_agent.training.objectives import Instructions
from drivefine_agent.training.optimization import (
    OptimizerConfig,
    WeightAverage,
    build_optimizer,
    learning_rate_factor,
    optimizer_step,
    set_learning_rate,
)
from drivefine_agent.training.phase import batch_order, num_epoch_steps
from drivefine_agent.training.rollouts import SUB_SCORES, Rollouts
from drivefine_agent.training.seeds import generator_for, seed_global
from rl.rollout import encode_scenes
from rl.setup import TrainingScenes

LOGGER = logging.getLogger(__name__)

PREDICTED_COLUMNS = [SUB_SCORES.index(name) for name in PREDICTED]
_MULTIPLIERS = [PREDICTED.index(name) for name in ("no_at_fault_collisions", "drivable_area_compliance")]


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(learning_rate=1e-3, weight_decay=0.05, betas=(0.9, 0.99), warmup_share=0.05)


@dataclass(frozen=True)
class HeadTrainingConfig:
    """Size of the head and how it is trained."""

    slot_width: int = 32
    width: int = 256
    dropout: float = 0.1
    num_epochs: int = 20
    batch_size: int = 32
    """Scenes per step."""
    num_candidates: int = 32
    """Of each scene per step, drawn anew each time."""
    average_decay: float = 0.99
    """Of the running average of the weights, which is the result."""
    states_cache_gb: float = 4.0
    """Hidden states of all candidates are computed once and kept, in half precision, if they fit into this;
    otherwise they are computed when a step asks for them."""
    optimizer: OptimizerConfig = field(default_factory=_optimizer)

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("slot_width", "width", "num_epochs", "batch_size", "num_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"head.{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"head.dropout must lie in [0, 1), got {self.dropout}")


def loss_weights(sub_scores: Tensor) -> Tensor:
    """(..., K) weight of each predicted sub-score's term, given true ones (..., K), NaN where unknown."""
    known = torch.isfinite(sub_scores).all(dim=-1, keepdim=True)
    multiplier = sub_scores[..., _MULTIPLIERS].prod(dim=-1)
    parts = [multiplier if name in CONDITIONAL else torch.ones_like(multiplier) for name in PREDICTED]
    return torch.where(known, torch.stack(parts, dim=-1), 0.0)


def scorer_loss(logits: Tensor, sub_scores: Tensor) -> Tensor:
    """() the loss; see the module.

    Args:
      logits: (..., K) of the head.
      sub_scores: (..., K) true ones, NaN in all K where unknown.
    """
    weights = loss_weights(sub_scores)
    targets = torch.nan_to_num(sub_scores, nan=0.0)
    terms = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * weights
    dims = tuple(range(logits.ndim - 1))
    return (terms.sum(dim=dims) / weights.sum(dim=dims).clamp(min=1e-6)).mean()


class ScoredScenes:
    """Scenes with their scored candidates, and the hidden states that the planner gives them."""

    def __init__(self, planner: Planner, scenes: TrainingScenes, rollouts: Rollouts, cache_gb: float) -> None:
        """Leaves out candidates that could not be scored, and scenes without two that could.

        Args:
          planner: whose states are read.
          scenes: of the split.
          rollouts: scored candidates; those of other scenes are counted and left out.
          cache_gb: see `HeadTrainingConfig.states_cache_gb`.

        Raises:
          DataError: no scene is left.
        """
        self._planner, self._scenes = planner, scenes
        self._instructions = Instructions(planner.prompts, planner.device)
        rollouts = rollouts.rows(rollouts.is_valid)
        rows: dict[str, list[int]] = {}
        for row, token in enumerate(rollouts.tokens.tolist()):
            rows.setdefault(token, []).append(row)
        tokens = scenes.tokens(np.arange(len(scenes)))
        unknown = set(rows) - set(tokens)
        if unknown:
            LOGGER.warning("%d scenes of the rollouts are not in the split and are left out", len(unknown))
        self._index = [i for i, token in enumerate(tokens) if len(rows.get(token, ())) > 1]
        if not self._index:
            raise DataError(
                "a scorer learns from scenes with two scored candidates, got none in the rollouts: raise "
                "candidates.num_samples, or see why scoring fails"
            )
        self.candidates = [rollouts.rows(np.array(rows[tokens[i]])) for i in self._index]
        self._kept: list[Tensor] | None = None
        width = planner.model.config.text_config.hidden_size
        size = sum(rollout.actions.size for rollout in self.candidates) * width * 2
        if size <= cache_gb * 1e9:
            bar = tqdm(range(len(self)), desc="hidden states", unit="scene")
            self._kept = [self._computed([i], self._actions(i)[None])[0].half().cpu() for i in bar]

    def __len__(self) -> int:
        return len(self._index)

    def states(self, places: list[int], rows: list[NDArray[np.int64]]) -> Tensor:
        """(B, N, L, D) hidden states of N candidates of each of B scenes, float32."""
        if self._kept is not None:
            parts = [
                self._kept[place][torch.from_numpy(row)] for place, row in zip(places, rows, strict=True)
            ]
            return torch.stack(parts).float().to(self._planner.device)
        actions = [
            self._actions(place)[torch.from_numpy(row)] for place, row in zip(places, rows, strict=True)
        ]
        return self._computed(places, torch.stack(actions)).float()

    def poses(self, places: list[int], rows: list[NDArray[np.int64]]) -> Tensor:
        """(B, N, 8, 3) the same candidates as poses."""
        actions = [
            self._actions(place)[torch.from_numpy(row)] for place, row in zip(places, rows, strict=True)
        ]
        return poses_of(self._planner.model, torch.stack(actions)).to(self._planner.device)

    def targets(self, places: list[int], rows: list[NDArray[np.int64]]) -> Tensor:
        """(B, N, K) their true sub-scores, float32."""
        scores = [
            self.candidates[p].sub_scores[row][:, PREDICTED_COLUMNS]
            for p, row in zip(places, rows, strict=True)
        ]
        return torch.from_numpy(np.stack(scores)).float().to(self._planner.device)

    def _actions(self, place: int) -> Tensor:
        return torch.from_numpy(self.candidates[place].actions)

    @torch.no_grad()
    def _computed(self, places: list[int], actions: Tensor) -> Tensor:
        model, index = self._planner.model, np.array([self._index[place] for place in places])
        context = encode_scenes(model, self._scenes.inputs(model, index))
        reads = self._instructions.refine if model.config.n_refine > 0 else self._instructions.predict
        return candidate_states(model, context, reads, actions.to(self._planner.device))


def train_head(
    head: ScorerHead,
    scored: ScoredScenes,
    config: HeadTrainingConfig,
    seed: int,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, scalars: None,
) -> None:
    """Trains a head in place; its weights are then the running average.

    Args:
      head: on the planner's device.
      scored: scenes to learn from.
      config: how.
      seed: of order, candidates and dropout.
      on_step: called with the number of finished steps and what is worth logging.

    Raises:
      FloatingPointError: loss or gradient is not finite.
    """
    parameters = dict(head.named_parameters())
    optimizer = build_optimizer(parameters, lambda name: "language", config.optimizer)
    average = WeightAverage(parameters, config.average_decay)
    num_steps = config.num_epochs * num_epoch_steps(len(scored), config.batch_size)
    head.train()
    for step in tqdm(range(num_steps), desc="scorer", unit="step"):
        places = batch_order(len(scored), config.batch_size, seed, "scorer order", step).tolist()
        draws = generator_for(seed, "scorer candidates", step)
        rows = [drawn_rows(len(scored.candidates[place]), config.num_candidates, draws) for place in places]
        seed_global(seed, "scorer dropout", step)
        loss = scorer_loss(
            head(scored.states(places, rows), scored.poses(places, rows)), scored.targets(places, rows)
        )
        optimization = config.optimizer
        factor = learning_rate_factor(step, num_steps, optimization.warmup_share, optimization.final_share)
        set_learning_rate(optimizer, factor)
        norm = optimizer_step(loss, optimizer, average, optimization.max_grad_norm)
        on_step(step + 1, {"loss": loss.item(), "grad_norm": norm})
    average.swap()
    head.eval()


def drawn_rows(num_candidates: int, num_wanted: int, generator: torch.Generator) -> NDArray[np.int64]:
    """(num_wanted,) different candidates at random; where there are too few, all of them several times."""
    return np.resize(torch.randperm(num_candidates, generator=generator).numpy(), num_wanted)


@torch.no_grad()
def predictions(head: ScorerHead, scored: ScoredScenes) -> list[NDArray[np.float64]]:
    """(N, K) predicted sub-scores in [0, 1] of every scene's candidates, in the order of `scored`."""
    head.eval()
    found = []
    for place in range(len(scored)):
        rows = [np.arange(len(scored.candidates[place]))]
        logits = head(scored.states([place], rows), scored.poses([place], rows))[0]
        found.append(torch.sigmoid(logits).double().cpu().numpy())
    return found
