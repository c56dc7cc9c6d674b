"""Rewards of trajectories: NAVSIM's PDM score, computed while the model works on something else.

    with reward_scorer(config, cache_folder, tokens[0]) as scorer:
        ticket = scorer.submit(tokens, poses)        # returns at once, if there are workers
        ...
        scores = scorer.collect(ticket)              # waits for what is missing

A trajectory that cannot be scored has no reward: it is NaN in the result and counted, never 0. The same holds
for the trajectories of a worker that dies or hangs; the worker is replaced and the run goes on, until too
many fail in a row.

Shapes: B scenes, P trajectories per scene.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.scoring.batch import score_rows
from drivefine_agent.scoring.cache import SceneCache
from drivefine_agent.scoring.types import SubScoresV1
from rl.config import RewardConfig

LOGGER = logging.getLogger(__name__)

SUB_SCORES = SubScoresV1.names()
Scored = tuple[NDArray[np.float64], list[str]]
"""(P, 7) sub-scores of a scene's trajectories in the order of `SUB_SCORES`, NaN where there are none, and the
reasons."""


class RewardError(DriveFineError, RuntimeError):
    """Scoring does not work at all: too many workers in a row died or did not answer, or Ray is missing."""


@dataclass(frozen=True)
class Scores:
    """What trajectories are worth."""

    rewards: NDArray[np.float64]
    """(B, P) weighted true score, NaN where unknown."""
    sub_scores: NDArray[np.float64]
    """(B, P, 7) in the order of `SUB_SCORES`, NaN where unknown."""
    reasons: tuple[str, ...]
    """Why some are unknown."""
    predicted: NDArray[np.float64] | None = None
    """(B, P) score that a learned scorer predicts; None without one."""
    predicted_weight: float = 0.0

    @property
    def learned(self) -> NDArray[np.float64]:
        """(B, P) what is learned from: the reward and, with its weight, the prediction; NaN where unknown."""
        if self.predicted is None:
            return self.rewards
        return self.rewards + self.predicted_weight * self.predicted

    @property
    def is_valid(self) -> NDArray[np.bool_]:
        """(B, P) whether there is a reward."""
        return np.isfinite(self.rewards)

    def first(self, num: int) -> Scores:
        """Those of each scene's first `num` trajectories."""
        predicted = None if self.predicted is None else self.predicted[:, :num]
        return Scores(
            self.rewards[:, :num], self.sub_scores[:, :num], self.reasons, predicted, self.predicted_weight
        )

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(B, P) float32 of what is learned from, 0 where unknown, and (B, P) bool whether it is known."""
        rewards = torch.from_numpy(np.nan_to_num(self.learned, nan=0.0)).float()
        return rewards.to(device), torch.from_numpy(self.is_valid).to(device)


def weighted_score(sub_scores: NDArray[np.float64], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """PDMS with weights of our own: NC x DAC x weighted mean of the others. (...) of (..., 7).

    With the metric's weights (5, 5, 2) this is NAVSIM's score to the last bit.
    """
    parts = {name: sub_scores[..., i] for i, name in enumerate(SUB_SCORES)}
    weighted = sum(weight * parts[name] for name, weight in weights.items())
    mean = weighted / sum(weights.values())
    return np.asarray(parts["no_at_fault_collisions"] * parts["drivable_area_compliance"] * mean)


def scorable_scenes(cache: SceneCache, tokens: Sequence[str], split: str) -> NDArray[np.int64]:
    """Positions of the scenes that can be scored: all but those whose preparation is known to have failed.

    Raises:
      DataError: scenes are missing; says how many, which, and how to make them.
    """
    missing = [token for token in tokens if token not in cache and token not in cache.failures]
    if missing:
        raise DataError(
            f"every training scene must be in the scene cache, but {len(missing)} of {len(tokens)} are not "
            f"in {cache.folder} ({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}): run "
            f"python tools/build_scene_cache.py train_test_split={split} metric_cache_path={cache.folder}"
        )
    failed = [token for token in tokens if token in cache.failures]
    if failed:
        LOGGER.warning(
            "%d of %d scenes are left out: they could not be prepared for scoring, such as %s: %s",
            len(failed),
            len(tokens),
            failed[0],
            cache.failures[failed[0]],
        )
    return np.array([i for i, token in enumerate(tokens) if token in cache], dtype=np.int64)


def score_scene(cache: SceneCache, token: str, poses: NDArray[np.float64]) -> Scored:
    """Sub-scores of a scene's trajectories (P, 8, 3); what is wrong with scene or rows becomes a reason."""
    scores, errors = score_rows(cache, token, poses)
    reasons = dict.fromkeys(
        error for error in errors if error
    )  # that of a scene is the same for all its rows
    return np.stack([getattr(scores, name) for name in SUB_SCORES], axis=-1), list(reasons)


def unknown(num_trajectories: int) -> NDArray[np.float64]:
    """(P, 7) in place of scores that there are none of."""
    return np.full((num_trajectories, len(SUB_SCORES)), np.nan)


class RewardScorer(ABC):
    """Scores trajectories; a context manager that ends its workers."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Args: weights, by sub-score."""
        self._weights = dict(weights)
        self._shapes: dict[int, tuple[int, int]] = {}
        self.waited_s = 0.0
        """Time that `submit` and `collect` kept the caller waiting, since the start."""
        self.num_lost_workers = 0
        """Processes that died or did not answer in time; the trajectories that they had have no score."""

    def submit(self, tokens: Sequence[str], poses: NDArray[np.float64]) -> int:
        """Hands in trajectories (B, P, 8, 3) of B scenes; returns a ticket for `collect`."""
        if len(tokens) != len(poses):
            raise ValueError(f"expected trajectories of {len(tokens)} scenes, got {poses.shape}")
        ticket = len(self._shapes)
        self._shapes[ticket] = (len(tokens), poses.shape[1])
        start = time.perf_counter()
        self._submit(ticket, tokens, poses)
        self.waited_s += time.perf_counter() - start
        return ticket

    def collect(self, ticket: int) -> Scores:
        """The scores of a ticket, once.

        Raises:
          RewardError: too many workers in a row failed.
        """
        start = time.perf_counter()
        scored = self._collect(ticket)
        self.waited_s += time.perf_counter() - start
        num_scenes, num_trajectories = self._shapes[ticket]
        sub_scores = np.stack([scene for scene, _ in scored]) if scored else np.zeros((0, 0, len(SUB_SCORES)))
        assert sub_scores.shape[:2] == (num_scenes, num_trajectories)
        reasons = tuple(reason for _, scene in scored for reason in scene)
        scores = Scores(weighted_score(sub_scores, self._weights), sub_scores, reasons)
        if reasons:
            num_unknown, num = (~scores.is_valid).sum(), scores.is_valid.size
            LOGGER.warning("%d of %d trajectories have no reward, such as: %s", num_unknown, num, reasons[0])
        return scores

    def close(self) -> None:  # noqa: B027 - nothing to end in process
        """Ends workers."""

    def __enter__(self) -> RewardScorer:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _submit(self, ticket: int, tokens: Sequence[str], poses: NDArray[np.float64]) -> None: ...

    @abstractmethod
    def _collect(self, ticket: int) -> list[Scored]:
        """Results of a ticket, scene by scene."""


class InProcessScorer(RewardScorer):
    """Scores in this process, when the result is asked for."""

    def __init__(self, weights: Mapping[str, float], cache: SceneCache) -> None:
        super().__init__(weights)
        self._cache = cache
        self._waiting: dict[int, tuple[Sequence[str], NDArray[np.float64]]] = {}

    def _submit(self, ticket: int, tokens: Sequence[str], poses: NDArray[np.float64]) -> None:
        self._waiting[ticket] = (tokens, poses)

    def _collect(self, ticket: int) -> list[Scored]:
        tokens, poses = self._waiting.pop(ticket)
        return [score_scene(self._cache, token, rows) for token, rows in zip(tokens, poses, strict=True)]


def reward_scorer(config: RewardConfig, cache_folder: Path) -> RewardScorer:
    """The scorer that a configuration asks for.

    Raises:
      DataError: the folder is no scene cache. RewardError: Ray is wanted and not installed.
    """
    if config.backend == "ray":
        from rl.ray_rewards import RayScorer

        return RayScorer(config, cache_folder)
    if config.num_workers == 0:
        return InProcessScorer(config.weights, SceneCache(cache_folder))
    from rl.reward_pool import PoolScorer

    return PoolScorer(config, cache_folder)
