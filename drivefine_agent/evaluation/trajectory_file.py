"""Scoring a file of trajectories: one row in, one row out, and a bad row costs no other row its score.

In: `token` (scene token), `trajectory_id`, `poses` (24 numbers, row-major (8, 3): x [m], y [m], heading [rad]
of the rear axle in the ego frame of t = 0, 0.5 s apart). Out: `token`, `trajectory_id`, `error` (null or
text) and NAVSIM's columns, which are NaN where there is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from drivefine_agent.constants import ANSWER_LENGTH, NUM_POSE_FIELDS, NUM_POSES
from drivefine_agent.data.types import FloatArray
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.scoring.scorer import score_v1_rows
from drivefine_agent.scoring.scorer_v2 import HumanFilter, Traffic, score_v2_rows
from drivefine_agent.scoring.types import ScoringScene, ScoringSceneV2, SubScoresV1, SubScoresV2

INPUT_COLUMNS = ("token", "trajectory_id", "poses")
METRIC_COLUMNS = {"navsim_v1": SubScoresV1.names(), "navsim_v2": SubScoresV2.names()}
"""By rules."""
_FIELD_NAMES = ("x", "y", "heading")

SceneLookup = Callable[[str], ScoringScene]


@dataclass(frozen=True)
class ScoringRules:
    """By which rules trajectories are scored; the last two matter to `navsim_v2` only."""

    name: str = "navsim_v1"
    traffic: Traffic = "non_reactive"
    human_penalty_filter: HumanFilter = "true"

    @property
    def columns(self) -> tuple[str, ...]:
        """NAVSIM's columns."""
        return METRIC_COLUMNS[self.name]

    def score(
        self, scene: ScoringScene, poses: list[FloatArray]
    ) -> tuple[SubScoresV1 | SubScoresV2, list[str | None]]:
        """Sub-scores of rows (8, 3), NaN in bad ones, and per row the reason."""
        if self.name == "navsim_v1":
            return score_v1_rows(scene, poses)
        assert isinstance(scene, ScoringSceneV2)
        scores, _, errors = score_v2_rows(
            scene, poses, traffic=self.traffic, human_penalty_filter=self.human_penalty_filter
        )
        return scores, errors


def read_trajectories(path: Path) -> pd.DataFrame:
    """The trajectories of a Parquet file, one per row, with the columns `token`, `trajectory_id` and `poses`.

    Raises:
      DataError: if the file is missing, no Parquet file, lacks a column, or has rows without a token.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise DataError(f"there is no file of trajectories at {path}") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"trajectories must be a Parquet file: {path} cannot be read as one ({error})"
        ) from error
    missing = [name for name in INPUT_COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(f"trajectories need the columns {list(INPUT_COLUMNS)}, {path} lacks {missing}")
    columns = {name: table.column(name).to_pylist() for name in INPUT_COLUMNS}
    for row, token in enumerate(columns["token"]):
        if not isinstance(token, str):
            raise DataError(f"every row needs a scene token (text), got {token!r} in row {row}: {path}")
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


def parse_poses(values: Any) -> FloatArray:
    """The poses (8, 3) of a row.

    Raises:
      ValueError: if they are not 24 finite numbers; the message says what they are instead.
    """
    if values is None:
        raise ValueError(f"poses must be {ANSWER_LENGTH} numbers, got null")
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"poses must be {ANSWER_LENGTH} numbers, got something else ({error})") from error
    if array.shape not in ((ANSWER_LENGTH,), (NUM_POSES, NUM_POSE_FIELDS)):
        shape = f"{len(array)} numbers" if array.ndim == 1 else f"shape {array.shape}"
        raise ValueError(
            f"poses must be {ANSWER_LENGTH} numbers (8 poses of x, y, heading, 0.5 s apart), got {shape}"
        )
    poses = array.reshape(NUM_POSES, NUM_POSE_FIELDS)
    bad = np.argwhere(~np.isfinite(poses))
    if len(bad):
        pose, field = bad[0]
        raise ValueError(
            f"poses must be finite, got {poses[pose, field]} for {_FIELD_NAMES[field]} of pose {pose}"
        )
    return poses


def score_trajectories(
    trajectories: pd.DataFrame,
    find_scene: SceneLookup,
    show_progress: bool = False,
    rules: ScoringRules | None = None,
) -> pd.DataFrame:
    """Score every row beside the reference planner alone.

    Args:
      trajectories: columns `token`, `trajectory_id`, `poses`.
      find_scene: token -> prepared scene; raises DriveFineError or KeyError if there is none.
      show_progress: draw a progress bar over the rows.
      rules: default NAVSIM 1.1's; `find_scene` gives scenes of the same rules.

    Returns:
      One row per row, in order: `token`, `trajectory_id`, `error` and the metrics.
    """
    errors: list[str | None] = [None] * len(trajectories)
    rules = rules or ScoringRules()
    scores = {name: np.full(len(trajectories), np.nan) for name in rules.columns}
    rows_of: dict[str, list[int]] = {}
    for row, token in enumerate(trajectories["token"]):
        rows_of.setdefault(token, []).append(row)
    all_poses = list(trajectories["poses"])

    with tqdm(total=len(trajectories), desc="Scoring", unit="trajectory", disable=not show_progress) as bar:
        for token, rows in rows_of.items():
            _score_scene(token, rows, all_poses, find_scene, rules, scores, errors)
            bar.update(len(rows))
    return pd.DataFrame(
        {
            "token": list(trajectories["token"]),
            "trajectory_id": list(trajectories["trajectory_id"]),
            "error": pd.Series(errors, dtype=object),
            **scores,
        }
    )


def _score_scene(
    token: str,
    rows: list[int],
    all_poses: list[Any],
    find_scene: SceneLookup,
    rules: ScoringRules,
    scores: dict[str, FloatArray],
    errors: list[str | None],
) -> None:
    """Score the rows of one scene into `scores` and `errors`."""
    good_rows: list[int] = []
    good_poses: list[FloatArray] = []
    for row in rows:
        try:
            good_poses.append(parse_poses(all_poses[row]))
            good_rows.append(row)
        except ValueError as error:
            errors[row] = str(error)
    if not good_rows:
        return
    try:
        scene = find_scene(token)
    except (DriveFineError, KeyError) as error:
        reason = str(error.args[0]) if error.args else str(error)
        for row in good_rows:
            errors[row] = reason
        return
    sub_scores, row_errors = rules.score(scene, good_poses)
    for index, row in enumerate(good_rows):
        errors[row] = row_errors[index]
    for name in rules.columns:
        scores[name][good_rows] = getattr(sub_scores, name)


def write_scores(scores: pd.DataFrame, path: Path) -> None:
    """Write the result as Parquet; the file appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, pa.Array] = {}
    for name in ("token", "trajectory_id", "error"):
        values = [None if value is None else str(value) for value in scores[name]]
        columns[name] = pa.array(values, type=pa.string())
    for name in scores.columns.drop(["token", "trajectory_id", "error"]):
        columns[name] = pa.array(scores[name].to_numpy(dtype=np.float64))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(pa.table(columns), temporary)
        temporary.replace(path)
    # Whatever ends the write, an interrupt too, must leave no half file behind; it is raised again.
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
