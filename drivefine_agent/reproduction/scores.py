"""The scenes behind a table, in one file beside its page: what a page says can be computed from it alone.

A seed that lies there is not trained again, so seeds can be added one by one, on other machines too.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.folder_lock import FolderLock
from drivefine_agent.data.json_text import parse_json
from drivefine_agent.data.parquet import read_parquet
from drivefine_agent.errors import DataError
from drivefine_agent.reproduction.tables import Table


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


_METADATA = b"drivefine"
_WAIT_S = 60.0
_KEYS = {
    "row": _is_text,
    "seed": pa.types.is_integer,
    "token": _is_text,
    "log": _is_text,
    "valid": pa.types.is_boolean,
}
"""The columns that are no scores, with the test of their type."""


@dataclass
class TableScores:
    """Per-scene results of a table's rows."""

    settings: Mapping[str, Any]
    """What the numbers depend on, JSON-like."""
    log_of: dict[str, str] = field(default_factory=dict)
    """The log of every scene token."""
    tables: dict[tuple[str, int], pd.DataFrame] = field(default_factory=dict)
    """By row title and seed: token, valid, the table's columns (float32)."""
    minutes: dict[int, float] = field(default_factory=dict)
    """What the commands of a seed took, one after another."""

    def has(self, table: Table, seed: int) -> bool:
        """Whether a seed is there for all rows."""
        return all((row.title, seed) in self.tables for row in table.rows)

    def add(self, row: str, seed: int, result: pd.DataFrame, columns: tuple[str, ...]) -> None:
        """Takes a row's results (`results.read_evaluation`) of one seed; floats become float32."""
        chosen = result[["token", "valid", *columns]]
        self.tables[row, seed] = chosen.astype(dict.fromkeys(columns, np.float32)).reset_index(drop=True)


def write_scores(path: Path, scores: TableScores) -> None:
    """One line per row, seed and scene; settings and minutes are in the file's metadata."""
    parts = [
        frame.assign(row=row, seed=seed, log=[scores.log_of[token] for token in frame["token"]])
        for (row, seed), frame in scores.tables.items()
    ]
    lines = pd.concat(parts, ignore_index=True)
    lines = lines[[*_KEYS, *(c for c in lines.columns if c not in _KEYS)]]
    told = {"settings": scores.settings, "minutes": {str(k): v for k, v in scores.minutes.items()}}
    columns = pa.Table.from_pandas(lines, preserve_index=False)
    columns = columns.replace_schema_metadata({_METADATA: json.dumps(told).encode()})
    buffer = io.BytesIO()
    pq.write_table(columns, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def add_scores(path: Path, scores: TableScores) -> None:
    """Writes scores, with what another command has written there since they were read.

    Raises:
      DataError: that was made with other settings, or cannot be read; or another process holds the folder.
    """
    with FolderLock(path.parent, wait_s=_WAIT_S):
        others = read_scores(path, scores.settings)
        write_scores(
            path,
            TableScores(
                scores.settings,
                {**others.log_of, **scores.log_of},
                {**others.tables, **scores.tables},
                {**others.minutes, **scores.minutes},
            ),
        )


def read_scores(path: Path, settings: Mapping[str, Any]) -> TableScores:
    """What `write_scores` has written; empty if there is no file.

    Args:
      path: of the file.
      settings: what the numbers must have been made with.

    Raises:
      DataError: they were made with other settings, or the file is damaged.
    """
    scores = TableScores(settings)
    if not path.is_file():
        return scores
    try:
        lines = read_parquet(path)
        _check_columns(lines.schema)
        told = parse_json((lines.schema.metadata or {})[_METADATA], "its metadata")
        found = {**told["settings"]}
        minutes = {int(seed): float(v) for seed, v in told["minutes"].items()}
        frame = lines.replace_schema_metadata(None).to_pandas()  # the metadata may name an index
        if frame[[*_KEYS]].isna().any(axis=None):
            raise DataError(f"the columns {list(_KEYS)} need a value in every line")
        groups = frame.groupby(["row", "seed"], sort=False)
        scores.log_of = dict(zip(frame["token"], frame["log"], strict=True))
    except (pa.ArrowException, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise DataError(f"cannot read the scores of a table from {path}: {error}; delete it") from error
    if found != json.loads(json.dumps(settings)):
        other = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
        raise DataError(
            f"the scores in {path} were made with other settings ({', '.join(other)}): choose another folder "
            "of results, or delete the file"
        )
    for (row, seed), part in groups:
        columns = [c for c in part.columns if c not in _KEYS]
        scores.tables[str(row), int(seed)] = part[["token", "valid", *columns]].reset_index(drop=True)
    scores.minutes = minutes
    return scores


def _check_columns(schema: pa.Schema) -> None:
    """The keys, and numbers.

    Raises:
      DataError: one is missing, or of another type.
    """
    if not {*_KEYS} <= {*schema.names}:
        raise DataError(f"it needs the columns {list(_KEYS)}, got {schema.names}")
    for column in schema:
        is_its_type = _KEYS.get(column.name, pa.types.is_floating)
        if not is_its_type(column.type):
            raise DataError(f"the column {column.name} cannot be {column.type}")
