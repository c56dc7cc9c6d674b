"""What happened to one scene, and the file that keeps it so that an evaluation can go on where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from drivefine_agent.constants import ANSWER_LENGTH, NUM_POSE_FIELDS, NUM_POSES
from drivefine_agent.data.atomic import atomic_file, write_bytes
from drivefine_agent.data.json_text import parse_json
from drivefine_agent.data.parquet import read_frame, read_parquet
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.results_csv import METRICS_V1, result_table
from drivefine_agent.scoring.types import FloatArray, SubScoresV1

LOGGER = logging.getLogger(__name__)

FINAL = "final"
"""Trajectory id of the trajectory that counts."""
GENERATED = "generated"
"""Trajectory id of what a refining planner had before refinement."""

_PREDICTIONS = pa.schema(
    [("token", pa.string()), ("trajectory_id", pa.string()), ("poses", pa.list_(pa.float64()))]
)
_SCENES_PER_PORTION = 1024


@dataclass(frozen=True)
class StageOutcome:
    """One trajectory of a scene and what it scored."""

    poses: tuple[float, ...] | None
    """24 floats, row-major (8, 3); None where the planner gave none."""
    scores: dict[str, float] | None
    """By metric name; None where scoring failed, or has not been done yet."""
    error: str | None = None
    details: dict[str, array[float]] | None = None
    """What NAVSIM 2 needs to compare a scene with its neighbours (`scored_frames`); arrays, since a hundred
    numbers of every scene are kept until the end."""


@dataclass(frozen=True)
class SceneOutcome:
    """All trajectories of a scene, by trajectory id."""

    token: str
    stages: dict[str, StageOutcome] = field(default_factory=dict)
    planning_ms: float | None = None
    """Of plans: what planning took, as this scene's share of its batch, without the reading of images."""

    @property
    def is_valid(self) -> bool:
        """Whether every trajectory was planned and scored."""
        return all(stage.error is None for stage in self.stages.values())


def failed_scene(token: str, stage_names: Iterable[str], error: str) -> SceneOutcome:
    """A scene of which nothing could be planned or scored, for one reason."""
    return SceneOutcome(token, {name: StageOutcome(None, None, error) for name in stage_names})


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change with anything in a (JSON-like) configuration."""
    text = json.dumps(configuration, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_identities(paths: Iterable[Path]) -> dict[str, list[int]]:
    """Size and time of change of files, and of all files in folders, by path: differs when one is replaced.

    Hidden files count for nothing: locks, and what a process is writing.

    Raises:
      DataError: if a path does not exist.
    """
    identities = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"what an evaluation reads must exist, got no {path}: correct the path")
        files = (
            [path]
            if path.is_file()
            else sorted(
                item for item in path.rglob("*") if item.is_file() and not _is_hidden(item.relative_to(path))
            )
        )
        for file in files:
            status = file.stat()
            identities[str(file)] = [status.st_size, status.st_mtime_ns]
    return identities


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


class OutcomeLog:
    """Outcomes appended to a JSON-lines file; its name carries the hash of the configuration they belong to.

    A log of the kind `plans` holds trajectories that are not scored yet.

    Lines are flushed to disk before the next batch starts. A line cut off by a crash is dropped on opening;
    anything else that cannot be read is an error.
    """

    def __init__(self, folder: Path, digest: str, kind: str = "outcomes") -> None:
        """Opens or creates the log; `outcomes` then holds what is already there."""
        self.path = folder / f"{kind}-{digest}.jsonl"
        self.outcomes: dict[str, SceneOutcome] = {}
        if self.path.exists():
            self._read()

    def append(self, outcomes: Sequence[SceneOutcome]) -> None:
        """Keep outcomes; a scene that is already there is replaced."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            for outcome in outcomes:
                stream.write(json.dumps(asdict(outcome), allow_nan=False, default=list) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.outcomes.update({outcome.token: outcome for outcome in outcomes})

    def _read(self) -> None:
        text = self.path.read_bytes()
        whole, _, rest = text.rpartition(b"\n")
        if rest:  # the process died while writing this line
            write_bytes(self.path, whole + b"\n" if whole else b"")
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                outcome = _outcome(parse_json(line, f"{self.path}, line {number}"))
                self.outcomes[outcome.token] = outcome
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"line {number} of {self.path} is no outcome of an evaluation ({error}): delete the file "
                    "to evaluate from the start"
                ) from error


def _outcome(record: Any) -> SceneOutcome:
    """An outcome from its JSON; anything else raises KeyError, TypeError, ValueError or AttributeError."""
    stages = {}
    for name, stage in record["stages"].items():
        poses, scores, error, details = stage["poses"], stage["scores"], stage["error"], stage.get("details")
        if poses is not None and (len(poses) != ANSWER_LENGTH or not all(map(_is_number, poses))):
            raise ValueError(f"the poses of {name!r} are not {ANSWER_LENGTH} numbers")
        if scores is not None and not all(map(_is_number, scores.values())):
            raise ValueError(f"the scores of {name!r} are not numbers")
        if not isinstance(error, str | None) or not isinstance(details, dict | None):
            raise ValueError(f"the error or the details of {name!r} are something else")
        if details is not None:
            if not all(map(_is_number, chain.from_iterable(details.values()))):
                raise ValueError(f"the details of {name!r} are not numbers")
            details = {key: array("d", values) for key, values in details.items()}
        stages[name] = StageOutcome(None if poses is None else tuple(poses), scores, error, details)
    token, planning_ms = record["token"], record.get("planning_ms")
    if not isinstance(token, str) or not (planning_ms is None or _is_number(planning_ms)):
        raise ValueError("its token is no text, or its planning time no number")
    return SceneOutcome(token, stages, planning_ms)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def stage_table(outcomes: Sequence[SceneOutcome], stage: str) -> pd.DataFrame:
    """The result table (`results_csv`) of one trajectory id."""
    values = {name: np.full(len(outcomes), np.nan) for name in METRICS_V1}
    for row, outcome in enumerate(outcomes):
        scores = outcome.stages[stage].scores
        if scores is not None:
            for name in METRICS_V1:
                values[name][row] = scores[name]
    is_valid = [outcome.stages[stage].error is None for outcome in outcomes]
    return result_table([outcome.token for outcome in outcomes], SubScoresV1(**values), is_valid)


def predictions_table(outcomes: Sequence[SceneOutcome], privileged: str = "") -> pd.DataFrame:
    """Trajectories as tools/score_trajectories.py reads them: token, trajectory_id, poses (24 floats).

    Args:
      outcomes: plans.
      privileged: of planners that know more than one can: a further column that says what.
    """
    rows = [
        {"token": outcome.token, "trajectory_id": name, "poses": list(stage.poses)}
        for outcome in outcomes
        for name, stage in outcome.stages.items()
        if stage.poses is not None
    ]
    table = pd.DataFrame(rows, columns=["token", "trajectory_id", "poses"])
    return table.assign(privileged=privileged) if privileged else table


def write_predictions_file(path: Path, outcomes: Sequence[SceneOutcome], privileged: str = "") -> None:
    """Writes a `predictions_table`, a portion at a time: the rows of all scenes are never there at once."""
    schema = _PREDICTIONS.append(pa.field("privileged", pa.string())) if privileged else _PREDICTIONS
    with atomic_file(path) as file, pq.ParquetWriter(file, schema) as writer:
        for start in range(0, len(outcomes), _SCENES_PER_PORTION):
            table = predictions_table(outcomes[start : start + _SCENES_PER_PORTION], privileged)
            writer.write_table(pa.Table.from_pandas(table, schema, preserve_index=False))


def privileged_of(path: Path) -> str:
    """What the planner of a predictions file knew that none can; empty for honest ones.

    Raises:
      DataError: the file cannot be read.
    """
    table = read_parquet(path)
    if "privileged" not in table.column_names:
        return ""
    return "; ".join(sorted({str(text) for text in table.column("privileged").to_pylist()}))


def plans_of(path: Path, tokens: Sequence[str]) -> dict[str, SceneOutcome]:
    """Plans by token from a predictions file, as `job.make_plans` gives them; absent ones are errors.

    Raises:
      DataError: the file cannot be read, or has no trajectory `final` at all.
    """
    predictions = read_predictions(path)
    if FINAL not in predictions:
        raise DataError(
            f"predictions need trajectories with the trajectory_id '{FINAL}', got {sorted(predictions)[:5]} "
            f"in {path}; write them with tools/evaluate.py"
        )
    num_unused = len(set(predictions[FINAL]) - set(tokens))
    if num_unused:
        LOGGER.info("%d predictions in %s are of scenes outside the split", num_unused, path)
    names = [name for name in (FINAL, GENERATED) if name in predictions]
    plans = {}
    for token in tokens:
        stages = {}
        for name in names:
            poses = predictions[name].get(token)
            if poses is None:
                stages[name] = StageOutcome(None, None, f"there is no prediction for this scene in {path}")
            elif not np.isfinite(poses).all():
                stages[name] = StageOutcome(None, None, f"the prediction is not finite in {path}")
            else:
                stages[name] = StageOutcome(tuple(poses.ravel().tolist()), None)
        plans[token] = SceneOutcome(token, stages)
    return plans


def read_predictions(path: Path) -> dict[str, dict[str, FloatArray]]:
    """Trajectories (8, 3) by trajectory id, then scene token, of a predictions Parquet file.

    Raises:
      DataError: if the file is missing, is no such Parquet file, or a row does not hold 24 numbers.
    """
    if not path.is_file():
        raise DataError(
            f"predictions must exist, got {path}: run tools/evaluate.py first or correct the path"
        )
    table = read_frame(path, ["token", "trajectory_id", "poses"])
    found: dict[str, dict[str, FloatArray]] = {}
    for token, name, poses in zip(table["token"], table["trajectory_id"], table["poses"], strict=True):
        try:
            array = np.asarray(poses, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"expected 24 numbers as poses ({error}) for token {token!r} in {path}; write it again"
            ) from error
        if array.shape != (NUM_POSES * NUM_POSE_FIELDS,):
            raise DataError(
                f"expected 24 numbers as poses, got shape {array.shape} for token {token!r} in {path}; "
                "write it again"
            )
        if str(token) in found.setdefault(str(name), {}):
            raise DataError(
                f"each scene may have one trajectory of a trajectory_id, got several {str(name)!r} for token "
                f"{token!r} in {path}; write it again"
            )
        found[str(name)][str(token)] = array.reshape(NUM_POSES, NUM_POSE_FIELDS)
    return found
