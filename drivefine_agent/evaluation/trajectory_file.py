"""Scoring a file of trajectories: one row in, one row out, and a bad row costs no other row its score.

In: `token` (scene token), `trajectory_id`, `poses` (24 numbers, row-major (8, 3): x [m], y [m], heading [rad]
of the rear axle in the ego frame of t = 0, 0.5 s apart). Out: `token`, `trajectory_id`, `error` (null or
text) and NAVSIM's columns, which are NaN where there is an error.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from drivefine_agent.constants import ANSWER_LENGTH, NUM_POSE_FIELDS, NUM_POSES
from drivefine_agent.data.types import FloatArray
from drivefine_agent.errors import DataError
from drivefine_agent.scoring.batch import Scenes, ScoringRules, score_many

INPUT_COLUMNS = ("token", "trajectory_id", "poses")
_FIELD_NAMES = ("x", "y", "heading")


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
    scenes: Scenes,
    show_progress: bool = False,
    rules: ScoringRules | None = None,
    num_workers: int = 1,
) -> pd.DataFrame:
    """Score every row beside the reference planner alone.

    Args:
      trajectories: columns `token`, `trajectory_id`, `poses`.
      scenes: prepared scenes by token, of the same rules.
      show_progress: draw a progress bar over the rows.
      rules: default NAVSIM 1.1's.
      num_workers: threads; the result is the same for any number.

    Returns:
      One row per row, in order: `token`, `trajectory_id`, `error` and the metrics.
    """
    errors: list[str | None] = [None] * len(trajectories)
    rules = rules or ScoringRules()
    scores = {name: np.full(len(trajectories), np.nan) for name in rules.columns}
    rows_of: dict[str, list[int]] = {}
    poses_of: dict[str, list[FloatArray]] = {}
    for row, (token, values) in enumerate(zip(trajectories["token"], trajectories["poses"], strict=True)):
        try:
            poses = parse_poses(values)
        except ValueError as error:
            errors[row] = str(error)
            continue
        rows_of.setdefault(token, []).append(row)
        poses_of.setdefault(token, []).append(poses)

    with tqdm(total=len(trajectories), desc="Scoring", unit="trajectory", disable=not show_progress) as bar:
        bar.update(sum(error is not None for error in errors))
        results = score_many(scenes, poses_of, rules, num_workers=num_workers, on_progress=bar.update)
    for token, (sub_scores, row_errors) in results.items():
        for row, reason in zip(rows_of[token], row_errors, strict=True):
            errors[row] = reason
        for name in rules.columns:
            scores[name][rows_of[token]] = getattr(sub_scores, name)
    return pd.DataFrame(
        {
            "token": list(trajectories["token"]),
            "trajectory_id": list(trajectories["trajectory_id"]),
            "error": pd.Series(errors, dtype=object),
            **scores,
        }
    )


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
