"""Scoring on a Ray cluster, behind the same interface as the pool of processes.

Every machine must see the scene cache under the same path. Ray itself restarts workers that die; a task that
fails or takes too long is masked, as in the pool.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.scoring.cache import SceneCache
from rl.config import RewardConfig
from rl.rewards import RewardError, RewardScorer, Scored, score_scene, unknown


def import_ray() -> Any:
    """Ray, or how to get it.

    Raises:
      RewardError: it is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise RewardError(
            "reward.backend=ray needs Ray, which is not installed: pip install ray, or set "
            "reward.backend=processes"
        ) from error
    return ray


RayScoreFunction = Callable[[str, str, NDArray[np.float64]], Scored]
"""From the cache's folder, a scene's token and trajectories (P, 8, 3) to their scores."""


class RayScorer(RewardScorer):
    """One Ray task per scene; Ray spreads them over its machines."""

    def __init__(
        self, config: RewardConfig, cache_folder: Path, score: RayScoreFunction | None = None
    ) -> None:
        """Joins the running cluster (RAY_ADDRESS), or starts one on this machine.

        Args:
          config: number of tasks at a time and time-outs.
          cache_folder: of the scene cache.
          score: what a task does; default the PDM score.

        Raises:
          RewardError: Ray is not installed. DataError: the folder is no scene cache.
        """
        ray = import_ray()
        super().__init__(config.weights)
        SceneCache(cache_folder)
        self._ray, self._config = ray, config
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            ray.init(num_cpus=config.num_workers or None, log_to_driver=False)
        self._score = ray.remote(max_retries=0)(score or _score_in_folder)
        self._folder = str(cache_folder.resolve())
        self._open: dict[int, list[tuple[Any, int, str]]] = {}
        self._failures_in_a_row = 0
        self._has_answered = False

    def _submit(self, ticket: int, tokens: Sequence[str], poses: NDArray[np.float64]) -> None:
        self._open[ticket] = [
            (self._score.remote(self._folder, token, rows), len(rows), token)
            for token, rows in zip(tokens, poses, strict=True)
        ]

    def _collect(self, ticket: int) -> list[Scored]:
        ray = self._ray
        results: list[Scored] = []
        for reference, num_rows, token in self._open.pop(ticket):
            try:
                results.append(ray.get(reference, timeout=self._patience_s))
                self._failures_in_a_row = 0
                self._has_answered = True
            except (ray.exceptions.RayError, TimeoutError) as error:
                ray.cancel(reference, force=True)
                self._failures_in_a_row += 1
                self._has_answered = False  # another process has to start
                reason = f"a Ray task failed or did not answer in time at scene {token!r}: {error}"
                results.append((unknown(num_rows), [reason]))
                if self._failures_in_a_row >= self._config.max_failures_in_a_row:
                    raise RewardError(
                        f"{self._failures_in_a_row} scoring tasks in a row failed, the last: {reason}; see "
                        "the logs of Ray's workers, raise reward.timeout_s if the scenes are large"
                    ) from error
        return results

    @property
    def _patience_s(self) -> float:
        """How long to wait for a task; the first ones start processes and compile the scorer."""
        return self._config.timeout_s if self._has_answered else self._config.start_timeout_s

    def close(self) -> None:
        """Leaves the cluster, if it was joined here."""
        if self._owns_ray:
            self._ray.shutdown()


@functools.lru_cache(maxsize=2)
def _cache(folder: str) -> SceneCache:
    return SceneCache(Path(folder))


def _score_in_folder(folder: str, token: str, poses: NDArray[np.float64]) -> Scored:
    return score_scene(_cache(folder), token, poses)
