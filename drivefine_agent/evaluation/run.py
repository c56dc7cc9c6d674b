"""Evaluation of a planner in two passes: plan all scenes, then score them; keep every outcome.

A scene that cannot be read, planned or scored is an outcome with its reason, never a missing row and never a
zero. Only errors that this package raises on purpose become such outcomes; a bug in a planner stops the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.baselines.base import BatchPlanner, PlanningCase
from drivefine_agent.constants import NUM_POSE_FIELDS, NUM_POSES
from drivefine_agent.data.maps import Map, load_map
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError, DriveFineError, SceneError
from drivefine_agent.evaluation.outcomes import FINAL, SceneOutcome, StageOutcome, failed_scene
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.build_v2 import build_scoring_scene_v2
from drivefine_agent.scoring.cache import SceneCache
from drivefine_agent.scoring.cache_layout import RULES_V1, RULES_V2
from drivefine_agent.scoring.types import ScoringScene

BUILDERS: Mapping[str, Callable[[SceneWindow, Map], ScoringScene]] = {
    RULES_V1: build_scoring_scene,
    RULES_V2: build_scoring_scene_v2,
}
"""What prepares a scene, by rules."""

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

    def __init__(self, cache: SceneCache | None, maps_root: Path | None, rules: str = RULES_V1) -> None:
        """Args: cache and maps_root, either of which may be missing; rules that the scenes are made for."""
        self._cache = cache
        self._maps_root = maps_root
        self._build = BUILDERS[rules]
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
            # official metric caches of NAVSIM 1.1 do not name their map
            is_other_map = scene.map_name not in ("", window.map_name)
            if scene.timestamp_us != window.current.timestamp_us or is_other_map:
                raise DataError(
                    f"the cached scene {token!r} belongs to another log: it is of {scene.map_name} at "
                    f"{scene.timestamp_us} us, the log's of {window.map_name} at "
                    f"{window.current.timestamp_us} us; "
                    "build the scene cache again"
                )
            self.num_cached += 1
            return scene
        if self._cache is not None and token in self._cache.failures:
            raise SceneError(
                f"scene {token!r} could not be prepared when its cache was built: "
                f"{self._cache.failures[token]}; build it again if that was mended"
            )
        if self._maps_root is None:
            raise DataError(
                f"scene {token!r} is not in the scene cache and no map folder is known: set NUPLAN_MAPS_ROOT "
                "or build the scene with tools/build_scene_cache.py"
            )
        scene = self._build(window, load_map(self._maps_root, window.map_name))
        self.num_built += 1
        return scene


@dataclass(frozen=True)
class Driver:
    """Lets a planner plan batches of scenes."""

    planner: BatchPlanner
    scenes: SceneSource
    """Asked only for planners that see scoring scenes."""
    read_image: ImageReader
    """Front camera image (H, W, 3) RGB of a window; called only for planners that look."""

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Trajectory ids that each scene's outcome has."""
        return self.planner.stage_names if isinstance(self.planner, RefiningPlanner) else (FINAL,)

    def plan_batch(self, windows: Sequence[SceneWindow]) -> list[SceneOutcome]:
        """One outcome per window, in order, with trajectories and without scores."""
        outcomes: dict[str, SceneOutcome] = {}
        prepared: list[PlanningCase] = []
        for window in windows:
            try:
                prepared.append(self._prepare(window))
            except DriveFineError as error:
                outcomes[window.token] = self._failed(window, error)
        started = time.perf_counter()
        results = self._plan(prepared)
        planning_ms = 1000.0 * (time.perf_counter() - started) / max(len(prepared), 1)
        for case, result in zip(prepared, results, strict=True):
            token = case.window.token
            if isinstance(result, DriveFineError):
                outcomes[token] = self._failed(case.window, result)
            else:
                outcomes[token] = SceneOutcome(
                    token, {name: planned(poses) for name, poses in result.items()}, planning_ms
                )
        return [outcomes[window.token] for window in windows]

    def _prepare(self, window: SceneWindow) -> PlanningCase:
        scene = self.scenes.get(window) if self.planner.needs_scoring_scene else None
        image = self.read_image(window) if self.planner.needs_image else None
        return PlanningCase(window, image, scene)

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


def planned(poses: NDArray[np.float64]) -> StageOutcome:
    """A trajectory that is not scored yet; an error where it is none."""
    array = np.asarray(poses, dtype=np.float64)
    if array.shape != (NUM_POSES, NUM_POSE_FIELDS):
        return StageOutcome(
            None, None, f"a plan must have shape ({NUM_POSES}, {NUM_POSE_FIELDS}), got {array.shape}"
        )
    if not np.isfinite(array).all():
        return StageOutcome(None, None, "a plan must be finite, got NaN or infinite poses")
    return StageOutcome(tuple(array.ravel().tolist()), None)


def drive(
    driver: Driver,
    windows: Sequence[SceneWindow],
    done: Mapping[str, SceneOutcome],
    keep: Callable[[Sequence[SceneOutcome]], None],
    batch_size: int = 16,
    on_progress: Callable[[int], None] = lambda count: None,
) -> dict[str, SceneOutcome]:
    """The first pass: plans of all windows by token.

    Args:
      driver: plans.
      windows: the scenes.
      done: plans of an earlier run; valid ones are taken over, failed ones tried again.
      keep: called with the plans of each batch as soon as they are there.
      batch_size: scenes planned at once.
      on_progress: called with the number of scenes that were finished since the last call.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    plans = {token: plan for token, plan in done.items() if plan.is_valid}
    open_windows = [window for window in windows if window.token not in plans]
    on_progress(len(windows) - len(open_windows))
    for batch in batches(open_windows, batch_size):
        fresh = driver.plan_batch(batch)
        keep(fresh)
        plans.update({plan.token: plan for plan in fresh})
        on_progress(len(batch))
    return {window.token: plans[window.token] for window in windows}


def batches(windows: Sequence[SceneWindow], batch_size: int) -> Iterator[Sequence[SceneWindow]]:
    """Consecutive slices of at most `batch_size`."""
    for start in range(0, len(windows), batch_size):
        yield windows[start : start + batch_size]


def failures(outcomes: Iterable[SceneOutcome]) -> list[dict[str, str]]:
    """Token, trajectory id and reason of everything that failed."""
    return [
        {"token": outcome.token, "trajectory_id": name, "error": stage.error}
        for outcome in outcomes
        for name, stage in outcome.stages.items()
        if stage.error is not None
    ]
