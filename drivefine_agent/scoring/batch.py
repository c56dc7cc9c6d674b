"""Scoring many trajectories of many scenes, on several cores: the same numbers, whatever the split.

    results = score_many(SceneCache(folder), {token: poses, ...}, num_workers=8)
    results[token].scores.score          # (P,) NaN where there is an error
    results[token].errors                # per row None or the reason

A row's numbers depend on its scene and itself alone, so batch size, order, number and kind of workers do not
change a bit of them. A scene or row that cannot be scored has its reason, and costs no other its score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from drivefine_agent.errors import DriveFineError, SceneError
from drivefine_agent.scoring.cache_layout import NUM_SAMPLES, RULES_V1, rules_of
from drivefine_agent.scoring.scorer import score_v1_rows
from drivefine_agent.scoring.scorer_v2 import HumanFilter, Traffic, score_v2_rows
from drivefine_agent.scoring.types import FloatArray, ScoringScene, ScoringSceneV2, SubScoresV1, SubScoresV2
from drivefine_agent.worker_processes import as_they_finish

ROWS_PER_TASK = 256
"""Trajectories that a worker takes at a time, of one scene or several."""

SubScores = SubScoresV1 | SubScoresV2
Rows = Sequence[ArrayLike] | FloatArray
"""P trajectories, each (8, 3): x [m], y [m], heading [rad] at 0.5 ... 4.0 s in the ego frame of t = 0."""
Scenes = Mapping[str, ScoringScene] | Callable[[str], ScoringScene]
"""Scenes by token, as a SceneCache; or a function that raises DriveFineError or KeyError if there is none."""


@dataclass(frozen=True)
class ScoringRules:
    """By which rules trajectories are scored; the last two matter to `navsim_v2` only.

    Raises:
      ValueError: if the name is neither `navsim_v1` nor `navsim_v2`.
    """

    name: str = RULES_V1
    traffic: Traffic = "non_reactive"
    human_penalty_filter: HumanFilter = "true"

    def __post_init__(self) -> None:
        if self.name not in NUM_SAMPLES:
            raise ValueError(f"rules must be one of {sorted(NUM_SAMPLES)}, got {self.name!r}")

    @property
    def columns(self) -> tuple[str, ...]:
        """NAVSIM's columns."""
        return SubScoresV1.names() if self.name == RULES_V1 else SubScoresV2.names()

    def score(self, scene: ScoringScene, poses: Rows) -> SceneScores:
        """Sub-scores of rows (8, 3), NaN in bad ones, and per row the reason.

        Raises:
          SceneError: if the scene was prepared for other rules.
        """
        if rules_of(scene) != self.name:
            raise SceneError(
                f"scene '{scene.token}' was prepared for the rules '{rules_of(scene)}', but is to be scored"
                f" by '{self.name}': give the scenes of a cache with these rules"
            )
        if self.name == RULES_V1:
            return SceneScores(*score_v1_rows(scene, poses))
        assert isinstance(scene, ScoringSceneV2)
        scores, _, errors = score_v2_rows(
            scene, poses, traffic=self.traffic, human_penalty_filter=self.human_penalty_filter
        )
        return SceneScores(scores, errors)

    def unknown(self, num_rows: int, reason: str) -> SceneScores:
        """Of rows that cannot be scored for a common reason."""
        cls = SubScoresV1 if self.name == RULES_V1 else SubScoresV2
        nans = {
            field.name: np.full((num_rows, 4) if field.name == "weighted_metrics" else num_rows, np.nan)
            for field in fields(cls)
        }
        return SceneScores(cls(**nans), [reason] * num_rows)


class SceneScores(NamedTuple):
    """The result of a scene."""

    scores: SubScores
    """Every field is (P,), NaN where there is an error."""
    errors: list[str | None]
    """Per row the reason, None for good ones."""


def score_rows(scenes: Scenes, token: str, poses: Rows, rules: ScoringRules | None = None) -> SceneScores:
    """Score trajectories of one scene; what is wrong with the scene becomes the reason of all its rows."""
    rules = rules or ScoringRules()
    find = scenes.__getitem__ if isinstance(scenes, Mapping) else scenes
    try:
        return rules.score(find(token), poses)
    except (DriveFineError, KeyError) as error:
        return rules.unknown(len(poses), str(error.args[0]) if error.args else str(error))


def score_many(
    scenes: Scenes,
    poses: Mapping[str, Rows],
    rules: ScoringRules | None = None,
    *,
    num_workers: int = 1,
    kind: Literal["threads", "processes"] = "threads",
    on_progress: Callable[[int], object] = lambda count: None,
) -> dict[str, SceneScores]:
    """Score trajectories of many scenes.

    Args:
      scenes: scenes by token; for processes, something that can be pickled (a SceneCache).
      poses: by token, P trajectories.
      rules: default NAVSIM 1.1's; of the scenes.
      num_workers: 1 works in the calling thread.
      kind: threads share the scenes and start at once; the kernels run without Python's lock. Processes take
        seconds to start; `make bench PARTS=workers` compares the two.
      on_progress: called with the number of trajectories that were finished since the last call.

    Returns:
      One result per token, in the order of `poses`.

    Raises:
      WorkerError: a worker process died or hangs.
    """
    if num_workers < 1 or kind not in ("threads", "processes"):
        raise ValueError(
            f"num_workers must be at least 1 and kind threads or processes, got {num_workers} and {kind!r}"
        )
    rules = rules or ScoringRules()
    parts: dict[str, dict[int, SceneScores]] = {token: {} for token in poses}
    for task, results in _results(scenes, rules, list(_tasks(poses)), num_workers, kind):
        for piece, result in zip(task, results, strict=True):
            parts[piece.token][piece.first_row] = result
        on_progress(sum(len(piece.poses) for piece in task))
    return {token: _joined([parts[token][row] for row in sorted(parts[token])]) for token in poses}


class _Piece(NamedTuple):
    """Some trajectories of a scene."""

    token: str
    first_row: int
    poses: Rows


_Task = list[_Piece]


def _tasks(poses: Mapping[str, Rows]) -> Iterator[_Task]:
    """Portions of about ROWS_PER_TASK trajectories; a scene with more is divided."""
    task: _Task = []
    num_rows = 0
    for token, rows in poses.items():
        for first in range(0, max(len(rows), 1), ROWS_PER_TASK):
            piece = _Piece(token, first, rows[first : first + ROWS_PER_TASK])
            task.append(piece)
            num_rows += len(piece.poses)
            if num_rows >= ROWS_PER_TASK:
                yield task
                task, num_rows = [], 0
    if task:
        yield task


def _results(
    scenes: Scenes, rules: ScoringRules, tasks: list[_Task], num_workers: int, kind: str
) -> Iterator[tuple[_Task, list[SceneScores]]]:
    """Tasks with their results, in the order in which they are finished."""
    if num_workers == 1 or len(tasks) < 2:
        for task in tasks:
            yield task, _score_task(scenes, rules, task)
        return
    if kind == "processes":
        yield from as_they_finish(
            _score_in_worker,
            tasks,
            min(num_workers, len(tasks)),
            initializer=_start_worker,
            initargs=(scenes, rules),
            describe=lambda task: f"the scenes from '{task[0].token}' on",
            advice="score them again",
        )
        return
    with ThreadPoolExecutor(num_workers) as pool:
        futures = {pool.submit(_score_task, scenes, rules, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()


def _score_task(scenes: Scenes, rules: ScoringRules, task: _Task) -> list[SceneScores]:
    return [score_rows(scenes, piece.token, piece.poses, rules) for piece in task]


# The scenes and rules of a worker process; set when it starts.
_worker: tuple[Scenes, ScoringRules] | None = None


def _start_worker(scenes: Scenes, rules: ScoringRules) -> None:
    global _worker
    _worker = scenes, rules


def _score_in_worker(task: _Task) -> list[SceneScores]:
    assert _worker is not None
    return _score_task(*_worker, task)


def _joined(parts: list[SceneScores]) -> SceneScores:
    """The results of a scene's pieces as one."""
    if len(parts) == 1:
        return parts[0]
    cls = type(parts[0].scores)
    scores = cls(**{f.name: np.concatenate([getattr(p.scores, f.name) for p in parts]) for f in fields(cls)})
    return SceneScores(scores, [error for part in parts for error in part.errors])
