"""Evaluation of a planner: for every scene plan, score against the reference, keep the outcome.

A scene that cannot be read, planned or scored is an outcome with its reason, never a missing row and never a
zero. Only errors that this package raises on purpose become such outcomes; a bug in a planner stops the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.baselines.base import BatchPlanner, PlanningCase
from drivefine_agent.constants import NUM_POSE_FIELDS, NUM_POSES
from drivefine_agent.data.maps import load_map
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError, DriveFineError, SceneError
from drivefine_agent.evaluation.outcomes import FINAL, SceneOutcome, StageOutcome, failed_scene
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.cache import SceneCache
from drivefine_agent.scoring.scorer import score_v1_rows
from drivefine_agent.scoring.types import ScoringScene, SubScoresV1

Planned = Mapping[str, NDArray[np.float64]] | DriveFineError
ImageReader = Callable[[SceneWindow], NDArray[np.uint8]]


@runtime_checkable
class RefiningPlanner(Protocol):
    """A planner that also tells what it had before refinement; evaluation scores both."""

    @property
    def stage_names(self) -> tuple[str, ...]:
        """`final`, and `generated` if refinement is switched on."""
        ...

    def plan_stages(self, cases: Sequence[PlanningCase]) -> Mapping[str, NDArray[np.float64]]:
        """(B, 8, 3) poses by stage name."""
        ...


class SceneSource:
    """Scoring scenes: from the scene cache, or built from log and map where the cache has none.

    Attributes:
      num_cached: how many came from the cache.
      num_built: how many were built.
    """

    def __init__(self, cache: SceneCache | None, maps_root: Path | None) -> None:
        """Args: cache and maps_root, either of which may be missing."""
        self._cache = cache
        self._maps_root = maps_root
        self.num_cached = 0
        self.num_built = 0

    def get(self, window: SceneWindow) -> ScoringScene:
        """The scoring scene of a window.

        Raises:
          DataError: the cache belongs to another dataset, or there is neither a cached scene nor a map.
          SceneError: the scene cannot be prepared.
        """
        token = window.token
        if self._cache is not None and token in self._cache:
            scene = self._cache[token]
            if scene.timestamp_us != window.current.timestamp_us or scene.map_name != window.map_name:
                raise DataError(
                    f"the cached scene {token!r} belongs to another log: it is of {scene.map_name} at "
                    f"{scene.timestamp_us} us, the log's of {window.map_name} at "
                    f"{window.current.timestamp_us} us; "
                    "build the scene cache again"
                )
            self.num_cached += 1
            return scene
        if self._cache is not None and token in self._cache.failures:
            raise SceneError(f"scene {token!r} could not be prepared: {self._cache.failures[token]}")
        if self._maps_root is None:
            raise DataError(
                f"scene {token!r} is not in the scene cache and no map folder is known: set NUPLAN_MAPS_ROOT "
                "or build the scene with tools/build_scene_cache.py"
            )
        scene = build_scoring_scene(window, load_map(self._maps_root, window.map_name))
        self.num_built += 1
        return scene


@dataclass(frozen=True)
class Evaluator:
    """Plans and scores batches of scenes."""

    planner: BatchPlanner
    scenes: SceneSource
    read_image: ImageReader
    """Front camera image (H, W, 3) RGB of a window; called only for planners that look."""

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Trajectory ids that each scene's outcome has."""
        return self.planner.stage_names if isinstance(self.planner, RefiningPlanner) else (FINAL,)

    def evaluate_batch(self, windows: Sequence[SceneWindow]) -> list[SceneOutcome]:
        """One outcome per window, in order."""
        outcomes: dict[str, SceneOutcome] = {}
        prepared: list[tuple[PlanningCase, ScoringScene]] = []
        for window in windows:
            try:
                prepared.append(self._prepare(window))
            except DriveFineError as error:
                outcomes[window.token] = self._failed(window, error)
        for (case, scene), result in zip(prepared, self._plan([case for case, _ in prepared]), strict=True):
            if isinstance(result, DriveFineError):
                outcomes[case.window.token] = self._failed(case.window, result)
            else:
                outcomes[case.window.token] = score_stages(scene, result)
        return [outcomes[window.token] for window in windows]

    def _prepare(self, window: SceneWindow) -> tuple[PlanningCase, ScoringScene]:
        scene = self.scenes.get(window)
        image = self.read_image(window) if self.planner.needs_image else None
        return PlanningCase(window, image, scene if self.planner.needs_scoring_scene else None), scene

    def _plan(self, cases: Sequence[PlanningCase]) -> list[Planned]:
        """Poses (8, 3) by stage per case. If a batch fails, each case is tried alone."""
        if not cases:
            return []
        try:
            return self._plan_together(cases)
        except DriveFineError as error:
            if len(cases) == 1:
                return [error]
            return [result for case in cases for result in self._plan([case])]

    def _plan_together(self, cases: Sequence[PlanningCase]) -> list[Planned]:
        if isinstance(self.planner, RefiningPlanner):
            stages = dict(self.planner.plan_stages(cases))
        else:
            stages = {FINAL: self.planner.plan(cases)}
        for name in self.stage_names:
            if name not in stages or len(stages[name]) != len(cases):
                raise ValueError(
                    f"the planner {self.planner.name()!r} must answer {len(cases)} cases with as many "
                    f"trajectories {name!r}, got {len(stages.get(name, ()))}"
                )
        return [{name: stages[name][row] for name in self.stage_names} for row in range(len(cases))]

    def _failed(self, window: SceneWindow, error: DriveFineError) -> SceneOutcome:
        return failed_scene(window.token, self.stage_names, f"{type(error).__name__}: {error}")


def score_stages(scene: ScoringScene, stages: Mapping[str, NDArray[np.float64]]) -> SceneOutcome:
    """Outcome of a scene from its trajectories (8, 3) by stage; a bad one costs no other its score."""
    scores, errors = score_v1_rows(scene, list(stages.values()))
    outcomes = {}
    for row, (name, poses) in enumerate(stages.items()):
        array = np.asarray(poses, dtype=np.float64)
        is_kept = array.shape == (NUM_POSES, NUM_POSE_FIELDS) and bool(np.isfinite(array).all())
        outcomes[name] = StageOutcome(
            poses=tuple(array.ravel().tolist()) if is_kept else None,
            scores=_score_row(scores, row) if errors[row] is None else None,
            error=errors[row],
        )
    return SceneOutcome(scene.token, outcomes)


def _score_row(scores: SubScoresV1, row: int) -> dict[str, float]:
    return {name: float(getattr(scores, name)[row]) for name in SubScoresV1.names()}


def batches(windows: Sequence[SceneWindow], batch_size: int) -> Iterator[Sequence[SceneWindow]]:
    """Consecutive slices of at most `batch_size`."""
    for start in range(0, len(windows), batch_size):
        yield windows[start : start + batch_size]


def evaluate(
    evaluator: Evaluator,
    windows: Sequence[SceneWindow],
    done: Mapping[str, SceneOutcome],
    keep: Callable[[Sequence[SceneOutcome]], None],
    batch_size: int = 16,
    on_progress: Callable[[int], None] = lambda count: None,
) -> list[SceneOutcome]:
    """Outcomes of all windows, in order.

    Args:
      evaluator: plans and scores.
      windows: the scenes.
      done: outcomes of an earlier run; valid ones are taken over, failed ones tried again.
      keep: called with the outcomes of each batch as soon as they are there.
      batch_size: scenes planned at once.
      on_progress: called with the number of scenes that were finished since the last call.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    outcomes = {token: outcome for token, outcome in done.items() if outcome.is_valid}
    open_windows = [window for window in windows if window.token not in outcomes]
    on_progress(len(windows) - len(open_windows))
    for batch in batches(open_windows, batch_size):
        fresh = evaluator.evaluate_batch(batch)
        keep(fresh)
        outcomes.update({outcome.token: outcome for outcome in fresh})
        on_progress(len(batch))
    return [outcomes[window.token] for window in windows]


def failures(outcomes: Iterable[SceneOutcome]) -> list[dict[str, str]]:
    """Token, trajectory id and reason of everything that failed."""
    return [
        {"token": outcome.token, "trajectory_id": name, "error": stage.error}
        for outcome in outcomes
        for name, stage in outcome.stages.items()
        if stage.error is not None
    ]
