"""Compare agents on the same scenes: means of every sub-score, paired bootstrap intervals of the differences.

    python tools/compare.py drivefine=exp/drivefine blind=exp/ego_status_mlp cv=exp/constant_velocity
    python tools/compare.py A.csv B.csv

Each argument is NAME=FILE or FILE: a result CSV of NAVSIM 1.1 or 2.2 (of tools/evaluate.py or of NAVSIM
itself), or a folder that holds `results.csv`. The others are compared with the first agent, or with
--against. Of two-stage results the mapping groups are compared, since only they have a combined score, if
`*_groups.csv` (of tools/evaluate.py) lies beside each file; otherwise the samples, each stage by itself. A
result without a group's samples is compared over the groups that are complete for both. Agents that know more
than a planner can, such as an oracle, are marked, by the summary.json beside their results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.evaluation.bootstrap import NUM_RESAMPLES
from drivefine_agent.evaluation.comparison import (
    SHORT_NAMES,
    SHORT_NAMES_GROUPS,
    SHORT_NAMES_V2,
    compare,
    format_comparison,
)
from drivefine_agent.evaluation.job import BEFORE_NAME, RESULTS_NAME, SUMMARY_NAME
from drivefine_agent.evaluation.results_csv import read_csv
from drivefine_agent.evaluation.results_csv_v2 import (
    groups_path,
    read_groups,
    read_one_stage,
    read_two_stage,
    rules_of_csv,
)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line, with the results as a dictionary name -> CSV path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results", nargs="+", metavar="NAME=FILE", help="result CSV or folder holding results.csv"
    )
    parser.add_argument(
        "--against", metavar="NAME", help="base agent of the differences (default: the first)"
    )
    parser.add_argument(
        "--metric", default="score", metavar="COLUMN", help="compared column (default: score)"
    )
    parser.add_argument("--level", type=float, default=0.95, help="level of the intervals (default: 0.95)")
    parser.add_argument(
        "--resamples", type=int, default=NUM_RESAMPLES, help="bootstrap resamples (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers to this JSON file")
    arguments = parser.parse_args(argv)
    paths: dict[str, Path] = {}
    for item in arguments.results:
        name, separator, text = item.partition("=")
        if not separator:
            path = Path(item)
            name, text = (path.parent.name or "results") if path.stem == "results" else path.stem, item
        if not name or not text:
            parser.error(f"expected NAME=FILE, got {item!r}")
        if name in paths:
            parser.error(f"each name must occur once, got {name!r} twice")
        path = Path(text)
        paths[name] = path / "results.csv" if path.is_dir() else path
    if len(paths) < 2:
        parser.error(f"expected at least two agents to compare, got {len(paths)}")
    if arguments.against is not None and arguments.against not in paths:
        parser.error(f"--against must be one of {sorted(paths)}, got {arguments.against!r}")
    if not 0.0 < arguments.level < 1.0:
        parser.error(f"--level must lie between 0 and 1, got {arguments.level}")
    if arguments.resamples < 1:
        parser.error(f"--resamples must be at least 1, got {arguments.resamples}")
    arguments.results = paths
    return arguments


@dataclass(frozen=True)
class Comparable:
    """Results that can be compared row by row."""

    unit: str
    """What a row is."""
    tables: Mapping[str, pd.DataFrame]
    """By agent."""
    names: Mapping[str, str]
    """The metrics, with their short names."""


def read_results(paths: Mapping[str, Path]) -> list[Comparable]:
    """What there is to compare: one table per agent, or one per stage and agent.

    Raises:
      DataError: a file cannot be read, or the files are results of different benchmarks.
    """
    rules = {name: rules_of_csv(path) for name, path in paths.items()}
    if len(set(rules.values())) > 1:
        raise DataError(
            f"results of one benchmark can be compared, got {rules}: choose output folders (output_dir) of "
            "one"
        )
    benchmark = next(iter(rules.values()))
    if benchmark == "navsim_v1":
        return [Comparable("scenes", {name: read_csv(path) for name, path in paths.items()}, SHORT_NAMES)]
    if benchmark == "navsim_v2":
        tables = {name: read_one_stage(path) for name, path in paths.items()}
        return [Comparable("scenes", tables, SHORT_NAMES_V2)]
    group_files = {name: groups_path(path) for name, path in paths.items()}
    if all(path.is_file() for path in group_files.values()):
        tables = {name: read_groups(path) for name, path in group_files.items()}
        return [Comparable("mapping groups", tables, SHORT_NAMES_GROUPS)]
    rows = {name: read_two_stage(path)[0] for name, path in paths.items()}
    return [
        Comparable(
            f"samples of stage {stage}, each with the same weight",
            {name: table[table["stage"] == stage] for name, table in rows.items()},
            SHORT_NAMES_V2,
        )
        for stage in (1, 2)
    ]


def read_privileged(path: Path) -> str:
    """What the agent of a result knew that none can, by the summary beside it; empty where there is none.

    Raises:
      DataError: the summary is damaged.
    """
    summary = path.parent / SUMMARY_NAME
    if path.name not in (RESULTS_NAME, BEFORE_NAME) or not summary.is_file():
        return ""
    try:
        return str(read_json_object(summary).get("privileged", ""))
    except DataError as error:
        raise DataError(f"the summary {summary} is damaged ({error}): evaluate again") from error


def main(argv: list[str] | None = None) -> None:
    """Read, compare, print."""
    arguments = parse_arguments(argv)
    contents = []
    privileged = {name: read_privileged(path) for name, path in arguments.results.items()}
    for what in read_results(arguments.results):
        if arguments.metric not in what.names:
            raise DataError(
                f"--metric must be one of {list(what.names)}, got {arguments.metric!r}: choose one"
            )
        base = arguments.against or next(iter(what.tables))
        summaries = compare(
            what.tables,
            base,
            arguments.metric,
            arguments.level,
            arguments.resamples,
            arguments.seed,
            what.names,
        )
        marked = [replace(s, name=f"{s.name} (privileged)") if privileged[s.name] else s for s in summaries]
        print(format_comparison(marked, base, arguments.metric, arguments.level, what.names))
        print(
            f"\n{arguments.resamples} paired resamples of the {what.unit} valid for both agents;"
            " * excludes zero."
        )
        for name in filter(privileged.get, what.tables):
            print(f"{name} is privileged ({privileged[name]}): a bound, not the result of a planner.")
        print()
        rows = [asdict(summary) | {"privileged": privileged[summary.name]} for summary in summaries]
        contents.append({"base": base, "metric": arguments.metric, "unit": what.unit, "agents": rows})
    if arguments.json is not None:
        written = contents[0] if len(contents) == 1 else {"stages": contents}
        write_bytes(arguments.json, json.dumps(written, indent=1).encode())
        print(f"numbers: {arguments.json}")


if __name__ == "__main__":
    try:
        main()
    except DriveFineError as error:
        sys.exit(f"error: {error}")
