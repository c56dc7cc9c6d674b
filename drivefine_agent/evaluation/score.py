"""The second pass of an evaluation: plans in, scores out, in worker processes.

Under NAVSIM 2's rules a plan is scored without the human-penalty filter and without extended comfort: both
follow from what is kept here (`StageOutcome.details`), so that all rules can be reported from one scoring.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.constants import NUM_POSE_FIELDS, NUM_POSES
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DriveFineError
from drivefine_agent.evaluation.outcomes import SceneOutcome, StageOutcome
from drivefine_agent.evaluation.run import SceneSource
from drivefine_agent.geometry.se2 import global_from_local
from drivefine_agent.scoring.cache import SceneCache
from drivefine_agent.scoring.extended_comfort import motion_of
from drivefine_agent.scoring.frame_scores import FrameScores
from drivefine_agent.scoring.scorer import score_v1_rows
from drivefine_agent.scoring.scorer_v2 import Traffic, human_zeros_in, score_v2_rows
from drivefine_agent.scoring.types import ScoringScene, ScoringSceneV2, SubScoresV1
from drivefine_agent.worker_processes import as_they_finish

SCENES_PER_TASK = 16
_SCENES_WORTH_A_PROCESS = 400
"""A process takes seconds to start, and scores a few hundred scenes in that time."""


@dataclass(frozen=True)
class ScoringJob:
    """By which rules plans are scored, and where their scenes come from. Can be sent to another process."""

    rules: str
    """`navsim_v1` or `navsim_v2`."""
    traffic: Traffic = "non_reactive"
    scene_cache_path: Path | None = None
    maps_root: Path | None = None

    def source(self) -> SceneSource:
        """Opens the scenes."""
        cache = None if self.scene_cache_path is None else SceneCache(self.scene_cache_path, self.rules)
        return SceneSource(cache, self.maps_root, self.rules)


@dataclass
class ScoringCounts:
    """Where the scenes of a pass came from."""

    num_cached: int = 0
    num_built: int = 0


def score_scene(
    source: SceneSource, job: ScoringJob, window: SceneWindow, plan: SceneOutcome
) -> SceneOutcome:
    """The outcome of a scene from its plan; what could not be planned keeps its error."""
    stages = {
        name: np.asarray(stage.poses).reshape(NUM_POSES, NUM_POSE_FIELDS)
        for name, stage in plan.stages.items()
        if stage.error is None and stage.poses is not None
    }
    if not stages:
        return plan
    try:
        scene = source.get(window)
    except DriveFineError as error:
        reason = f"{type(error).__name__}: {error}"
        failed = {name: replace(plan.stages[name], error=reason) for name in stages}
        return SceneOutcome(plan.token, {**plan.stages, **failed})
    if isinstance(scene, ScoringSceneV2):
        scored = score_stages_v2(scene, stages, job.traffic)
    else:
        scored = score_stages(scene, stages)
    return SceneOutcome(plan.token, {**plan.stages, **scored.stages})


def score_stages(scene: ScoringScene, stages: Mapping[str, NDArray[np.float64]]) -> SceneOutcome:
    """PDMS of a scene's trajectories (8, 3) by stage; a bad one costs no other its score."""
    scores, errors = score_v1_rows(scene, list(stages.values()))
    outcomes = {}
    for row, (name, poses) in enumerate(stages.items()):
        values = {metric: float(getattr(scores, metric)[row]) for metric in SubScoresV1.names()}
        outcomes[name] = StageOutcome(_kept(poses), values if errors[row] is None else None, errors[row])
    return SceneOutcome(scene.token, outcomes)


def score_stages_v2(
    scene: ScoringSceneV2, stages: Mapping[str, NDArray[np.float64]], traffic: Traffic
) -> SceneOutcome:
    """NAVSIM 2's sub-scores of a scene's trajectories by stage, without filter; see the module."""
    scores, states, errors = score_v2_rows(
        scene, list(stages.values()), traffic=traffic, human_penalty_filter="false"
    )
    zeros = human_zeros_in(scene, traffic)
    outcomes = {}
    for row, (name, poses) in enumerate(stages.items()):
        if errors[row] is not None:
            outcomes[name] = StageOutcome(_kept(poses), None, errors[row])
            continue
        outcomes[name] = StageOutcome(
            _kept(poses),
            {metric: float(getattr(scores, metric)[row]) for metric in FrameScores.names()},
            details={
                "motion": array("d", motion_of(states[row]).ravel()),
                "start_xy": array("d", scene.initial_state[:2]),
                "endpoint_xy": array("d", global_from_local(poses[-1:], scene.initial_state[:3])[0, :2]),
                "human_zeros": array("d", () if scene.is_synthetic else zeros.astype(float)),
                "timestamp_us": array("d", (scene.timestamp_us,)),
            },
        )
    return SceneOutcome(scene.token, outcomes)


def score_windows(
    job: ScoringJob,
    windows: Sequence[SceneWindow],
    plans: Mapping[str, SceneOutcome],
    done: Mapping[str, SceneOutcome],
    keep: Callable[[Sequence[SceneOutcome]], None],
    num_workers: int | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> tuple[list[SceneOutcome], ScoringCounts]:
    """Outcomes of all windows, in order, and where their scenes came from.

    Args:
      job: rules and scenes.
      windows: the scenes.
      plans: by token (`run.drive`).
      done: outcomes of an earlier run; valid ones of the same plan are taken over.
      keep: called with outcomes as soon as they are there.
      num_workers: processes; None: as many as cores where there are enough scenes.
      on_progress: called with the number of scenes that were finished since the last call.

    Raises:
      WorkerError: a worker process died or hangs.
    """
    job.source()  # says here what is wrong with the scene cache, where a worker could only die of it
    counts = ScoringCounts()
    outcomes = {
        window.token: done[window.token] for window in windows if is_outcome_of(done, plans, window.token)
    }
    open_windows = [window for window in windows if window.token not in outcomes]
    on_progress(len(windows) - len(open_windows))
    tasks = [
        [(window, plans[window.token]) for window in open_windows[start : start + SCENES_PER_TASK]]
        for start in range(0, len(open_windows), SCENES_PER_TASK)
    ]
    if num_workers is None:
        num_workers = min(available_cores(), len(open_windows) // _SCENES_WORTH_A_PROCESS + 1)
    for fresh, num_cached, num_built in _results(job, tasks, num_workers):
        keep(fresh)
        outcomes.update({outcome.token: outcome for outcome in fresh})
        counts.num_cached += num_cached
        counts.num_built += num_built
        on_progress(len(fresh))
    return [outcomes[window.token] for window in windows], counts


def available_cores() -> int:
    """Cores that this process may use, 16 at most: every process loads the maps its scenes lie on."""
    return min(16, len(os.sched_getaffinity(0)))


_Task = list[tuple[SceneWindow, SceneOutcome]]
_Result = tuple[list[SceneOutcome], int, int]


def _results(job: ScoringJob, tasks: Sequence[_Task], num_workers: int) -> Iterator[_Result]:
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    if num_workers == 1 or len(tasks) < 2:
        source = job.source()
        for task in tasks:
            yield _score_task(source, job, task)
        return
    finished = as_they_finish(
        _score_in_worker,
        tasks,
        min(num_workers, len(tasks)),
        initializer=_start_worker,
        initargs=(job,),
        describe=lambda task: f"the scenes from '{task[0][0].token}' on",
        advice="what was scored is kept: start the same command again",
    )
    for _, result in finished:
        yield result


def _score_task(source: SceneSource, job: ScoringJob, task: _Task) -> _Result:
    before = source.num_cached, source.num_built
    outcomes = [score_scene(source, job, window, plan) for window, plan in task]
    return outcomes, source.num_cached - before[0], source.num_built - before[1]


# The job and the open scenes of a worker process; set when it starts.
_worker: tuple[ScoringJob, SceneSource] | None = None


def _start_worker(job: ScoringJob) -> None:
    global _worker
    _worker = job, job.source()


def _score_in_worker(task: _Task) -> _Result:
    assert _worker is not None
    job, source = _worker
    return _score_task(source, job, task)


def is_outcome_of(done: Mapping[str, SceneOutcome], plans: Mapping[str, SceneOutcome], token: str) -> bool:
    """Whether there is a valid outcome of a scene that scores the very plan there is now."""
    if token not in done or not done[token].is_valid:
        return False
    scored, plan = done[token].stages, plans[token].stages
    return {name: s.poses for name, s in scored.items()} == {name: s.poses for name, s in plan.items()}


def _kept(poses: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.asarray(poses, dtype=np.float64).ravel().tolist())
