"""NAVSIM 1.1's result CSV: one row per scene, then a row `average`.

A failed scene is a row with `valid` False and NaN metrics. NAVSIM leaves such rows out of the means, and so
does the row `average` here: look at `valid` and at the number of rows before comparing two averages.

Source: NAVSIM v1.1, navsim/planning/script/run_pdm_score.py.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.errors import DataError
from drivefine_agent.scoring.types import SubScoresV1

METRICS_V1 = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "comfort",
    "driving_direction_compliance",
    "score",
)
"""The metric columns in the order of NAVSIM 1.1's CSV."""

COLUMNS_V1 = ("token", "valid", *METRICS_V1)
AVERAGE_TOKEN = "average"


def result_table(
    tokens: Sequence[str], scores: SubScoresV1, is_valid: Sequence[bool] | None = None
) -> pd.DataFrame:
    """Per-scene results as a table with NAVSIM's columns, without the row `average`.

    Args:
      tokens: P scene tokens.
      scores: (P,) each; whatever stands in a row that is not valid is replaced by NaN.
      is_valid: P flags; None if all were scored.

    Raises:
      ValueError: if the numbers of tokens, scores and flags differ, a token repeats, or a valid row is NaN.
    """
    table = pd.DataFrame({name: getattr(scores, name) for name in METRICS_V1}, dtype="float64")
    flags = [True] * len(tokens) if is_valid is None else [bool(flag) for flag in is_valid]
    if not len(tokens) == len(table) == len(flags):
        raise ValueError(
            f"expected one row per token, got {len(tokens)} tokens, {len(table)} rows, {len(flags)} flags"
        )
    table.insert(0, "token", pd.Series(list(tokens), dtype="object"))
    table.insert(1, "valid", pd.Series(flags, dtype="bool"))
    table.loc[~table["valid"], list(METRICS_V1)] = float("nan")
    check_table(table, "result table")
    return table


def check_table(table: pd.DataFrame, where: str) -> None:
    """Raise ValueError if a token repeats or a valid row has no number in some metric."""
    repeated = table.loc[table["token"].duplicated(), "token"].unique()
    if len(repeated):
        raise ValueError(f"each scene must occur once, got {list(repeated[:5])} several times in {where}")
    missing = table[table["valid"]][list(METRICS_V1)].isna().any(axis=1)
    if missing.any():
        tokens = list(table[table["valid"]].loc[missing, "token"][:5])
        raise ValueError(f"a valid row must have all metrics, got NaN for tokens {tokens} in {where}")


def average_row(table: pd.DataFrame) -> pd.DataFrame:
    """(1 row) NAVSIM's summary: `valid` if all rows are; means skip NaN, taken over scenes."""
    means = {name: table[name].mean(skipna=True) for name in METRICS_V1}
    return pd.DataFrame([{"token": AVERAGE_TOKEN, "valid": bool(table["valid"].all()), **means}])


def format_csv(table: pd.DataFrame) -> str:
    """The text of NAVSIM's CSV: unnamed row index, the columns of `COLUMNS_V1`, the row `average` last."""
    if table.empty:
        raise ValueError("table must hold at least one scene, got none")
    return pd.concat([table[list(COLUMNS_V1)], average_row(table)], ignore_index=True).to_csv()


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write NAVSIM's CSV (atomically)."""
    write_bytes(path, format_csv(table).encode())


def read_columns(path: Path, numbers: Collection[str], index_col: int | None = 0) -> pd.DataFrame:
    """A CSV as a table: tokens as texts, and those of `numbers` that it has as float64.

    Raises:
      DataError: it is no CSV, or has something else than numbers in one of these columns.
    """
    # Numbers too: what pandas 2 parses is off by up to an ulp, and would not be written as it was read.
    texts = dict.fromkeys(("token", "previous_token", *numbers), "object")
    try:
        _check_widths(path)
        whole = pd.read_csv(path, index_col=index_col, dtype=texts)
    # not UTF-8, no CSV, a quoted field without end, a number of thousands of digits
    except (OSError, ValueError, OverflowError, csv.Error, pd.errors.ParserError) as error:
        raise DataError(f"{path} is not a readable CSV ({error}): write it again") from error
    for name in whole.columns.intersection(pd.Index(list(numbers))):
        try:
            whole[name] = whole[name].astype("float64")
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"expected numbers in the column {name!r} ({error!s:.80}): {path}; write it again"
            ) from error
    return whole


def _check_widths(path: Path) -> None:
    """Pandas makes an index of the fields that the first row has more than the header, in quadratic time."""
    with path.open(newline="", encoding="utf-8") as file:
        widths = {len(row) for row in csv.reader(file) if row}
    if len(widths) > 1:
        raise ValueError(f"rows must have as many fields as the header, got {sorted(widths)[:3]} fields")


def read_csv(path: Path) -> pd.DataFrame:
    """Per-scene rows of a NAVSIM 1.1 result CSV, ours or the official one; `average` is checked and dropped.

    Raises:
      DataError: if the file is missing, has other columns, no row, no `average`, or an `average` that is
        not the mean of its rows (a truncated or edited file).
    """
    if not path.is_file():
        raise DataError(
            f"a result CSV must exist, got {path}: run tools/evaluate.py first or correct the path"
        )
    whole = read_columns(path, METRICS_V1)
    if tuple(whole.columns) != COLUMNS_V1:
        raise DataError(
            f"expected NAVSIM 1.1's columns {list(COLUMNS_V1)}, got {list(whole.columns)} in {path}; write "
            "it again"
        )
    is_average = whole["token"] == AVERAGE_TOKEN
    table = whole[~is_average].reset_index(drop=True)
    if is_average.sum() != 1 or table.empty:
        raise DataError(
            f"expected scenes and one row {AVERAGE_TOKEN!r}, got {len(table)} scenes and {is_average.sum()} "
            f"such rows in {path}: the file may be truncated; write it again"
        )
    if table["valid"].dtype != bool:
        raise DataError(
            f"expected True or False in the column 'valid' of {path}, got {list(table['valid'][:3])}; "
            "write it again"
        )
    try:
        check_table(table, str(path))
    except ValueError as error:
        raise DataError(f"{error}; write it again") from error
    stored = whole[is_average][list(METRICS_V1)].astype("float64").to_numpy()
    computed = average_row(table)[list(METRICS_V1)].to_numpy()
    if not (abs(stored - computed) <= 1e-6)[~pd.isna(computed)].all():
        raise DataError(
            f"the row {AVERAGE_TOKEN!r} is not the mean of the rows above it in {path}: write it again"
        )
    return table
