"""Scoring a file of trajectories: one row in, one row out, and a bad row costs no other row its score.

In: `token` (scene token), `trajectory_id`, `poses` (24 numbers, row-major (8, 3): x [m], y [m], heading [rad]
of the rear axle in the ego frame of t = 0, 0.5 s apart). Out: `token`, `trajectory_id`, `error` (null or
text) and NAVSIM's columns, which are NaN where there is an error. Files may be of any length: rows are read,
scored and written in portions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from drivefine_agent.constants import ANSWER_LENGTH, NUM_POSE_FIELDS, NUM_POSES
from drivefine_agent.data.atomic import atomic_file
from drivefine_agent.data.parquet import DAMAGE
from drivefine_agent.data.types import FloatArray
from drivefine_agent.errors import DataError
from drivefine_agent.scoring.batch import Scenes, ScoringRules, score_many

INPUT_COLUMNS = ("token", "trajectory_id", "poses")
ROWS_PER_PORTION = 16_384
"""Rows that are in memory at a time."""
MAX_REASONS = 1000
"""Different reasons of failure that a summary counts."""
_TEXT_COLUMNS = ["token", "trajectory_id", "error"]
_FIELD_NAMES = ("x", "y", "heading")
_READ_BUFFER_BYTES = 1 << 20


class TrajectoryFile:
    """A Parquet file of trajectories, read in portions: memory does not grow with the number of rows.

    Raises:
      DataError: if the file is missing, no Parquet file, or lacks a column.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Without pre_buffer, and with a buffer, pages are read one by one, not whole row groups at once.
            self._file = pq.ParquetFile(path, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False)
        except FileNotFoundError as error:
            raise DataError(f"trajectories must exist, got no file {path}: correct the path") from error
        except DAMAGE as error:
            raise self._unreadable(error) from error
        missing = [name for name in INPUT_COLUMNS if name not in self._file.schema_arrow.names]
        if missing:
            raise DataError(
                f"trajectories need the columns {list(INPUT_COLUMNS)}, {path} lacks {missing}: write it again"
            )

    def __len__(self) -> int:
        """Number of rows."""
        return self._file.metadata.num_rows

    def tokens(self) -> list[str]:
        """Every scene token once, in the order of first appearance.

        Raises:
          DataError: a row has no token, or the file is damaged.
        """
        tokens: dict[str, None] = {}
        row = 0
        for columns in self._portions(["token"]):
            for token in columns["token"]:
                if not isinstance(token, str):
                    raise DataError(
                        f"every row needs a scene token (text), got {token!r} in row {row}: {self.path}; "
                        "write it again"
                    )
                tokens[token] = None
                row += 1
        return list(tokens)

    def portions(self) -> Iterator[pd.DataFrame]:
        """Rows in order, ROWS_PER_PORTION at a time: the columns `token`, `trajectory_id` and `poses`.

        Raises:
          DataError: the file is damaged.
        """
        for columns in self._portions(list(INPUT_COLUMNS)):
            yield pd.DataFrame({name: pd.Series(columns[name], dtype=object) for name in INPUT_COLUMNS})

    def _portions(self, names: list[str]) -> Iterator[dict[str, list[Any]]]:
        try:
            for batch in self._file.iter_batches(ROWS_PER_PORTION, columns=names, use_threads=False):
                yield {name: batch.column(name).to_pylist() for name in names}
        except DAMAGE as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"trajectories must be a Parquet file: {self.path} cannot be read ({error}); write it again"
        )


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
    rules: ScoringRules | None = None,
    num_workers: int = 1,
    on_progress: Callable[[int], object] = lambda count: None,
) -> pd.DataFrame:
    """Score every row beside the reference planner alone.

    Args:
      trajectories: columns `token`, `trajectory_id`, `poses`.
      scenes: prepared scenes by token, of the same rules.
      rules: default NAVSIM 1.1's.
      num_workers: threads; the result is the same for any number.
      on_progress: called with the number of rows that were finished since the last call.

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

    on_progress(sum(error is not None for error in errors))
    results = score_many(scenes, poses_of, rules, num_workers=num_workers, on_progress=on_progress)
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


@dataclass
class ScoreSummary:
    """What came out for a file of trajectories."""

    num_rows: int = 0
    num_scored: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """By metric, over the scored rows."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Of rows that could not be scored; the first MAX_REASONS different ones."""

    def add(self, scores: pd.DataFrame) -> None:
        """Count a portion of `score_trajectories`."""
        is_scored = scores["error"].isna()
        self.num_rows += len(scores)
        self.num_scored += int(is_scored.sum())
        for name in scores.columns.drop(_TEXT_COLUMNS):
            self.sums[name] = self.sums.get(name, 0.0) + float(scores.loc[is_scored, name].sum())
        for reason in scores.loc[~is_scored, "error"]:
            if reason in self.reasons or len(self.reasons) < MAX_REASONS:
                self.reasons[reason] += 1

    @property
    def means(self) -> dict[str, float]:
        """By metric, over the scored rows; empty if there is none."""
        return {name: total / self.num_scored for name, total in self.sums.items() if self.num_scored}


def score_file(
    trajectories: TrajectoryFile,
    scenes: Scenes,
    output: Path,
    show_progress: bool = False,
    rules: ScoringRules | None = None,
    num_workers: int = 1,
) -> ScoreSummary:
    """Score every row of a file into another Parquet file, a portion at a time.

    The output appears under its name only when it is complete. Arguments as in `score_trajectories`.

    Raises:
      DataError: the file is damaged.
    """
    rules = rules or ScoringRules()
    schema = pa.schema(
        [(name, pa.string()) for name in _TEXT_COLUMNS] + [(name, pa.float64()) for name in rules.columns]
    )
    summary = ScoreSummary()
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        tqdm(total=len(trajectories), desc="Scoring", unit="trajectory", disable=not show_progress) as bar,
        atomic_file(output) as file,
        pq.ParquetWriter(file, schema) as writer,
    ):
        for portion in trajectories.portions():
            scores = score_trajectories(portion, scenes, rules, num_workers, bar.update)
            writer.write_table(_arrow_table(scores, schema))
            summary.add(scores)
    return summary


def _arrow_table(scores: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name in _TEXT_COLUMNS:
        values = [None if value is None else str(value) for value in scores[name]]
        columns[name] = pa.array(values, type=pa.string())
    for name in scores.columns.drop(_TEXT_COLUMNS):
        columns[name] = pa.array(scores[name].to_numpy(dtype=np.float64))
    return pa.table(columns, schema=schema)
