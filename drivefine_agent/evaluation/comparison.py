"""Agents side by side on the same scenes: means and paired differences against one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.bootstrap import NUM_RESAMPLES, Interval, paired_interval

SHORT_NAMES = {
    "no_at_fault_collisions": "NC",
    "drivable_area_compliance": "DAC",
    "time_to_collision_within_bound": "TTC",
    "comfort": "C",
    "ego_progress": "EP",
    "driving_direction_compliance": "DDC",
    "score": "PDMS",
}
"""The papers' abbreviations, in the order in which tables list them."""
SHORT_NAMES_V2 = {
    "no_at_fault_collisions": "NC",
    "drivable_area_compliance": "DAC",
    "driving_direction_compliance": "DDC",
    "traffic_light_compliance": "TLC",
    "ego_progress": "EP",
    "time_to_collision_within_bound": "TTC",
    "lane_keeping": "LK",
    "history_comfort": "HC",
    "two_frame_extended_comfort": "EC",
    "score": "EPDMS",
}
"""The same for NAVSIM 2."""
SHORT_NAMES_GROUPS = {"stage_one": "stage 1", "stage_two": "stage 2", "score": "EPDMS"}
"""The columns of `*_groups.csv`: a two-stage evaluation by mapping group."""


@dataclass(frozen=True)
class AgentSummary:
    """One row of the comparison."""

    name: str
    num_scenes: int
    num_valid: int
    means: dict[str, float]
    """By metric name, over the agent's own valid scenes (NAVSIM's average)."""
    difference: Interval | None
    """This agent minus the base agent, over the scenes valid for both; None for the base agent itself."""


def check_same_scenes(tables: Mapping[str, pd.DataFrame]) -> None:
    """Raise DataError unless all result tables hold the same scene tokens."""
    names = list(tables)
    first = set(tables[names[0]]["token"])
    for name in names[1:]:
        other = set(tables[name]["token"])
        if other != first:
            missing, extra = sorted(first - other), sorted(other - first)
            raise DataError(
                f"compared results must cover the same scenes: {name!r} lacks {len(missing)} of {names[0]!r} "
                f"{missing[:3]} and has {len(extra)} others {extra[:3]}: evaluate both on one split"
            )


def paired_values(first: pd.DataFrame, second: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) of a metric in both tables over the scenes valid in both, sorted by token.

    Scenes that have no number in the metric for one of them (extended comfort needs a frame before) do not
    count either.

    Raises:
      DataError: if no scene is left.
    """
    columns = ["token", "valid", metric]
    pairs = first[columns].merge(
        second[columns], on="token", suffixes=("_first", "_second"), validate="one_to_one"
    )
    pairs = pairs[pairs["valid_first"] & pairs["valid_second"]].sort_values("token")
    pairs = pairs.dropna(subset=[f"{metric}_first", f"{metric}_second"])
    if pairs.empty:
        raise DataError(
            "a paired comparison needs scenes that are valid in both tables, got none: see failures.csv of "
            "both"
        )
    return pairs[f"{metric}_first"].to_numpy(), pairs[f"{metric}_second"].to_numpy()


def compare(
    tables: Mapping[str, pd.DataFrame],
    base: str,
    metric: str = "score",
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    names: Mapping[str, str] = SHORT_NAMES,
) -> list[AgentSummary]:
    """One summary per agent, in the order given, with its paired difference against `base`.

    Args:
      tables: result tables (`results_csv.read_csv`) by agent name.
      base: the agent that the others are compared with.
      metric: the compared column.
      level: of the interval.
      num_resamples: of the bootstrap.
      seed: of the bootstrap; every pair uses the same resamples of the scenes.
      names: the metrics of the tables, with their short names.

    Raises:
      ValueError: if `base` or `metric` is unknown.
      DataError: if the tables cover different scenes, or no scene is valid for both agents of a pair.
    """
    if base not in tables:
        raise ValueError(f"the base agent must be one of {sorted(tables)}, got {base!r}")
    if metric not in names:
        raise ValueError(f"the metric must be one of {sorted(names)}, got {metric!r}")
    check_same_scenes(tables)
    summaries = []
    for name, table in tables.items():
        difference = None
        if name != base:
            own, other = paired_values(table, tables[base], metric)
            difference = paired_interval(own, other, level, num_resamples, seed)
        means = {column: float(table[column].mean(skipna=True)) for column in names}
        summaries.append(AgentSummary(name, len(table), int(table["valid"].sum()), means, difference))
    return summaries


def format_comparison(
    summaries: list[AgentSummary],
    base: str,
    metric: str = "score",
    level: float = 0.95,
    names: Mapping[str, str] = SHORT_NAMES,
) -> str:
    """The comparison as an aligned text table; `*` marks intervals that exclude zero."""
    header = [
        "agent",
        "valid",
        *names.values(),
        f"{names[metric]} - {base} [{level:.0%} interval]",
    ]
    rows = [header]
    for summary in summaries:
        cells = [summary.name, f"{summary.num_valid}/{summary.num_scenes}"]
        cells += [f"{100 * summary.means[name]:.1f}" for name in names]
        rows.append([*cells, format_interval(summary.difference)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        left, *middle, right = (
            cell.ljust(width) if column in (0, len(header) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([left, *middle, right]).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def format_interval(interval: Interval | None) -> str:
    """For example `-3.2 [-5.0, -1.3] *`, in points of 100; a dash for None."""
    if interval is None:
        return "-"
    mark = " *" if interval.excludes_zero else ""
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]{mark}"
