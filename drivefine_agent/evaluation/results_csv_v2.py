"""NAVSIM 2.2's result CSVs: one stage, and two stages with their summaries.

One stage: a row per scene, then `average_all_frames`. Two stages: a row per sample, whose sub-scores stand in
the columns of its stage, then three summary rows. A failed scene is a row with `valid` False and NaN metrics,
left out of all means (NAVSIM itself writes no file then).

Source: pdm-scorer 4.16 and 4.17; NAVSIM v2.2, run_pdm_score_one_stage.py and run_pdm_score.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.results_csv import read_columns
from drivefine_agent.evaluation.scored_frames import COLUMNS_ONE_STAGE, METRICS_V2, SUB_SCORES_V2
from drivefine_agent.evaluation.two_stage import GROUP_COLUMNS, TwoStageResult
from drivefine_agent.scoring.types import FloatArray

_GROUPS_SUFFIX = "_groups.csv"
"""Beside a two-stage CSV: its mapping groups, which the CSV does not tell."""

AVERAGE_TOKEN = "average_all_frames"
STAGE_ONE_TOKEN = "extended_pdm_score_stage_one"
STAGE_TWO_TOKEN = "extended_pdm_score_stage_two"
COMBINED_TOKEN = "extended_pdm_score_combined"
SUMMARY_TOKENS = (STAGE_ONE_TOKEN, STAGE_TWO_TOKEN, COMBINED_TOKEN)
STAGES = ("stage_one", "stage_two")
_NO_NUMBERS = {"token", "previous_token", "valid"}
COLUMNS_TWO_STAGE = (
    "token",
    "valid",
    *(f"{name}_{stage}" for stage in STAGES for name in SUB_SCORES_V2),
    "score",
)

_TOLERANCE = 1e-6


def one_stage_csv(table: pd.DataFrame) -> str:
    """The text of NAVSIM's CSV for the rows of `scored_frames.frame_table`."""
    if table.empty:
        raise ValueError("table must hold at least one scene, got none")
    return pd.concat([table[list(COLUMNS_ONE_STAGE)], _average(table)], ignore_index=True).to_csv()


def _average(table: pd.DataFrame) -> pd.DataFrame:
    means = {name: table[name].mean(skipna=True) for name in METRICS_V2}
    return pd.DataFrame([{"token": AVERAGE_TOKEN, "valid": bool(table["valid"].all()), **means}])


def two_stage_csv(result: TwoStageResult) -> str:
    """The text of NAVSIM's CSV for a two-stage evaluation."""
    rows = [_staged(result.first, "stage_one"), _staged(result.second, "stage_two")]
    is_valid = result.is_complete and all(
        bool(table["valid"].all()) for table in (result.first, result.second)
    )
    score = METRICS_V2.index("score")
    one, two = result.means.stage_one, result.means.stage_two
    summaries = (
        (STAGE_ONE_TOKEN, one, None, one[score]),
        (STAGE_TWO_TOKEN, None, two, two[score]),
        (COMBINED_TOKEN, one, two, result.means.combined[score]),
    )
    for token, first, second, value in summaries:
        row = {"token": token, "valid": is_valid, **_cells(first, "stage_one"), **_cells(second, "stage_two")}
        rows.append(pd.DataFrame([{**row, "score": value}]))
    return pd.concat([row[list(COLUMNS_TWO_STAGE)] for row in rows], ignore_index=True).to_csv()


def _staged(table: pd.DataFrame, stage: str) -> pd.DataFrame:
    """Rows of one stage in the columns of the two-stage file."""
    renamed = table.rename(columns={name: f"{name}_{stage}" for name in SUB_SCORES_V2})
    return renamed.reindex(columns=list(COLUMNS_TWO_STAGE))


def _cells(means: FloatArray | None, stage: str) -> dict[str, float]:
    values = [np.nan] * len(SUB_SCORES_V2) if means is None else means[: len(SUB_SCORES_V2)].tolist()
    return {f"{name}_{stage}": value for name, value in zip(SUB_SCORES_V2, values, strict=True)}


def write_one_stage(path: Path, table: pd.DataFrame) -> None:
    """Write NAVSIM's CSV of one stage (atomically)."""
    write_bytes(path, one_stage_csv(table).encode())


def write_two_stage(path: Path, result: TwoStageResult) -> None:
    """Write NAVSIM's CSV of two stages (atomically)."""
    write_bytes(path, two_stage_csv(result).encode())


def read_one_stage(path: Path) -> pd.DataFrame:
    """Per-scene rows of a one-stage CSV, ours or the official one; the average is checked and dropped.

    Raises:
      DataError: if the file is missing, has other columns, or an average that is not that of its rows.
    """
    whole = _read(path, COLUMNS_ONE_STAGE)
    is_average = whole["token"] == AVERAGE_TOKEN
    table = whole[~is_average].reset_index(drop=True)
    if is_average.sum() != 1 or table.empty:
        raise DataError(
            f"expected scenes and one row {AVERAGE_TOKEN!r}, got {len(table)} scenes and {is_average.sum()} "
            f"such rows in {path}: the file may be truncated; write it again"
        )
    stored = whole[is_average][list(METRICS_V2)].to_numpy(dtype=np.float64)
    computed = _average(table)[list(METRICS_V2)].to_numpy(dtype=np.float64)
    if not np.allclose(stored, computed, rtol=0.0, atol=_TOLERANCE, equal_nan=True):
        raise DataError(
            f"the row {AVERAGE_TOKEN!r} is not the mean of the rows above it in {path}: write it again"
        )
    return table


def read_two_stage(path: Path) -> tuple[pd.DataFrame, dict[str, float]]:
    """Rows of a two-stage CSV, ours or the official one, and its three summaries.

    Returns:
      The samples' rows, with the column `stage` (1 or 2) and the metrics under their plain names; the score
      of each of SUMMARY_TOKENS.

    Raises:
      DataError: if the file is missing, has other columns, or lacks a summary.
    """
    whole = _read(path, COLUMNS_TWO_STAGE)
    is_summary = whole["token"].isin(SUMMARY_TOKENS)
    summaries = dict(zip(whole.loc[is_summary, "token"], whole.loc[is_summary, "score"], strict=True))
    if set(summaries) != set(SUMMARY_TOKENS) or is_summary.sum() != len(SUMMARY_TOKENS):
        raise DataError(
            f"expected one row for each of {list(SUMMARY_TOKENS)}, got {list(summaries)} in {path}: the file "
            "may be truncated; write it again"
        )
    rows = whole[~is_summary].reset_index(drop=True)
    one, two = (rows[[f"{name}_{stage}" for name in SUB_SCORES_V2]].to_numpy() for stage in STAGES)
    # A failed sample has no sub-scores at all; its stage shows in the length of its token.
    is_second = np.isnan(one).all(axis=1) & (
        ~np.isnan(two).all(axis=1) | (rows["token"].str.len().to_numpy() == 17)
    )
    values = np.where(is_second[:, None], two, one)
    table = pd.DataFrame(values, columns=list(SUB_SCORES_V2))
    table.insert(0, "token", rows["token"])
    table.insert(1, "valid", rows["valid"])
    table["score"] = rows["score"]
    table["stage"] = np.where(is_second, 2, 1)
    return table, {token: float(value) for token, value in summaries.items()}


def groups_path(results: Path) -> Path:
    """The mapping groups of a two-stage result CSV: results.csv has results_groups.csv beside it."""
    return results.with_name(results.stem + _GROUPS_SUFFIX)


def read_groups(path: Path) -> pd.DataFrame:
    """The mapping groups of a two-stage evaluation (`*_groups.csv`); those left out are not valid.

    Raises:
      DataError: if the file is missing or has other columns.
    """
    if not path.is_file():
        raise DataError(
            f"a two-stage result is compared by its mapping groups, but there is no {path}: evaluate again "
            "with tools/evaluate.py (the official CSV does not say which samples belong together)"
        )
    table = read_columns(path, set(GROUP_COLUMNS) - _NO_NUMBERS, index_col=None)
    if tuple(table.columns) != GROUP_COLUMNS:
        raise DataError(
            f"expected the columns {list(GROUP_COLUMNS)}, got {list(table.columns)} in {path}; write it again"
        )
    if table["valid"].dtype != bool:
        raise DataError(
            f"expected True or False in the column 'valid' of {path}, got {list(table['valid'][:3])}; "
            "write it again"
        )
    return table


def _read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"a result CSV must exist, got {path}: run tools/evaluate.py or correct the path")
    whole = read_columns(path, set(columns) - _NO_NUMBERS)
    if tuple(whole.columns) != columns:
        raise DataError(
            f"expected NAVSIM 2.2's columns {list(columns)}, got {list(whole.columns)} in {path}; write it "
            "again"
        )
    if whole["valid"].dtype != bool:
        raise DataError(
            f"expected True or False in the column 'valid' of {path}, got {list(whole['valid'][:3])}; "
            "write it again"
        )
    if whole["token"].duplicated().any():
        raise DataError(f"each scene must occur once, some occur several times in {path}; write it again")
    return whole


def rules_of_csv(path: Path) -> str:
    """`navsim_v1`, `navsim_v2` or `navhard_two_stage`, by the columns of a result CSV.

    Raises:
      DataError: if the file is missing.
    """
    if not path.is_file():
        raise DataError(f"a result CSV must exist, got {path}: run tools/evaluate.py or correct the path")
    with path.open("rb") as file:
        header = file.readline().decode("utf-8", errors="replace").rstrip("\r\n").split(",")[1:]
    if tuple(header) == COLUMNS_TWO_STAGE:
        return "navhard_two_stage"
    return "navsim_v2" if tuple(header) == COLUMNS_ONE_STAGE else "navsim_v1"
