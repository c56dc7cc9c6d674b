"""From the evaluations of a table's rows to its numbers: means over seeds, and paired intervals.

Every interval resamples whole logs (scenes of one drive are alike) of the per-scene mean over seeds; how the
seeds differ is shown beside it, and is not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.bootstrap import Interval, clustered_interval
from drivefine_agent.evaluation.comparison import SHORT_NAMES, SHORT_NAMES_GROUPS, SHORT_NAMES_V2
from drivefine_agent.evaluation.job import BEFORE_NAME, RESULTS_NAME
from drivefine_agent.evaluation.results_csv import read_csv
from drivefine_agent.evaluation.results_csv_v2 import groups_path, read_groups, read_one_stage
from drivefine_agent.reproduction.tables import Benchmark, Table


@dataclass(frozen=True)
class RowResult:
    """What a row of a table came to."""

    title: str
    note: str
    means: dict[str, float]
    """By column: over valid scenes, then over seeds."""
    by_seed: tuple[float, ...]
    """The table's metric for each seed."""
    num_scenes: int
    num_invalid: int
    """Failed scenes of all seeds together; they are in no mean."""
    own: Interval
    """Of the metric itself."""
    difference: Interval | None
    """To the row it is compared with; None where it is with none."""
    base: str | None
    """That row's title."""


def read_evaluation(folders: Mapping[Benchmark, Path], is_draft: bool) -> pd.DataFrame:
    """Per-scene results under the papers' short names: token, valid, metrics.

    Args:
      folders: output folders of tools/evaluate.py by benchmark. Where there are several, a name that two of
        them have is the last one's, and a scene must be valid in all.
      is_draft: read the results before refinement.

    Raises:
      DataError: a file is missing or damaged.
    """
    name = BEFORE_NAME if is_draft else RESULTS_NAME
    parts = [_read(benchmark, folder / name) for benchmark, folder in folders.items()]
    table = parts[0]
    for other in parts[1:]:
        kept = [column for column in table.columns if column not in other.columns or column == "token"]
        joined = table[[*kept, "valid"]].merge(other, on="token", suffixes=("_first", ""), validate="1:1")
        if len(joined) != len(table) or len(joined) != len(other):
            raise DataError(
                "results of one row must cover the same scenes, got others in "
                f"{[str(f) for f in folders.values()]}: delete them to evaluate again"
            )
        joined["valid"] &= joined.pop("valid_first")
        table = joined
    return table


def _read(benchmark: Benchmark, path: Path) -> pd.DataFrame:
    if benchmark == "navsim_v1":
        table, names = read_csv(path), SHORT_NAMES
    elif benchmark == "navsim_v2":
        table, names = read_one_stage(path), SHORT_NAMES_V2
    else:
        table, names = read_groups(groups_path(path)), SHORT_NAMES_GROUPS
    return table[["token", "valid", *names]].rename(columns=names)


def seed_means(tables: Sequence[pd.DataFrame], metric: str) -> pd.Series:
    """Per-scene mean of a metric over the seeds, by token, of scenes that have a number for every seed."""
    values = [table[table["valid"]].set_index("token")[metric].dropna() for table in tables]
    common = reduce(lambda a, b: a.intersection(b), (v.index for v in values))
    return sum((v.loc[common] for v in values[1:]), values[0].loc[common]) / len(values)


def difference(
    row: Sequence[pd.DataFrame], base: Sequence[pd.DataFrame], metric: str, log_of: Mapping[str, str]
) -> Interval:
    """Paired interval of a row's metric minus that of the row it is compared with, a table per seed each.

    Raises:
      DataError: no scene is valid in both, or they cover other scenes.
    """
    if {t for table in row for t in table["token"]} != {t for table in base for t in table["token"]}:
        raise DataError("rows to compare must cover the same scenes, got others: evaluate both on one split")
    gain = (seed_means(row, metric) - seed_means(base, metric)).dropna()
    return _interval(gain, log_of)


def _interval(values: pd.Series, log_of: Mapping[str, str]) -> Interval:
    if values.empty:
        raise DataError(
            "rows to compare need scenes that are valid for all seeds, got none: see the failures.csv of both"
        )
    values = values.sort_index()
    logs: NDArray[np.str_] = np.array([log_of[str(token)] for token in values.index])
    return clustered_interval(values.to_numpy(), logs)


def table_results(
    table: Table, tables: Sequence[Sequence[pd.DataFrame]], notes: Sequence[str], log_of: Mapping[str, str]
) -> list[RowResult]:
    """The rows' numbers.

    Args:
      table: what is shown.
      tables: for each row, per-scene results (`read_evaluation`) of each seed.
      notes: for each row, what its planner knows that others do not.
      log_of: the log of every scene token.
    """
    results = []
    for row, own, note in zip(table.rows, tables, notes, strict=True):
        valid = [result[result["valid"]] for result in own]
        means = {c: float(np.mean([result[c].mean(skipna=True) for result in valid])) for c in table.columns}
        results.append(
            RowResult(
                title=row.title,
                note=note,
                means=means,
                by_seed=tuple(float(result[table.metric].mean(skipna=True)) for result in valid),
                num_scenes=len(own[0]),
                num_invalid=sum(int((~result["valid"]).sum()) for result in own),
                own=_interval(seed_means(own, table.metric), log_of),
                difference=(
                    None if row.base is None else difference(own, tables[row.base], table.metric, log_of)
                ),
                base=None if row.base is None else table.rows[row.base].title,
            )
        )
    return results
