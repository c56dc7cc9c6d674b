"""Compare agents on the same scenes: means of every sub-score, paired bootstrap intervals of the differences.

    python tools/compare.py drivefine=exp/drivefine blind=exp/ego_status_mlp cv=exp/constant_velocity
    python tools/compare.py A.csv B.csv

Each argument is NAME=FILE or FILE: a result CSV of NAVSIM 1.1 or 2.2 (of tools/evaluate.py or of NAVSIM
itself), or a folder that holds `results.csv`. The others are compared with the first agent, or with
--against. Of two-stage results, mapping groups are compared, since only they have a combined score: the
folder must hold `groups.csv` (of tools/evaluate.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.evaluation.bootstrap import NUM_RESAMPLES
from drivefine_agent.evaluation.comparison import (
    SHORT_NAMES,
    SHORT_NAMES_GROUPS,
    SHORT_NAMES_V2,
    compare,
    format_comparison,
)
from drivefine_agent.evaluation.results_csv import read_csv
from drivefine_agent.evaluation.results_csv_v2 import read_groups, read_one_stage, rules_of_csv


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


def read_results(paths: Mapping[str, Path]) -> tuple[dict[str, pd.DataFrame], Mapping[str, str], str]:
    """Tables by agent, the metrics with their short names, and what a row is.

    Raises:
      DataError: a file cannot be read, or the files are results of different benchmarks.
    """
    rules = {name: rules_of_csv(path) for name, path in paths.items()}
    if len(set(rules.values())) > 1:
        raise DataError(f"results of one benchmark can be compared, got {rules}")
    benchmark = next(iter(rules.values()))
    if benchmark == "navsim_v1":
        return {name: read_csv(path) for name, path in paths.items()}, SHORT_NAMES, "scenes"
    if benchmark == "navsim_v2":
        return {name: read_one_stage(path) for name, path in paths.items()}, SHORT_NAMES_V2, "scenes"
    groups = {name: read_groups(path.with_name("groups.csv")) for name, path in paths.items()}
    return groups, SHORT_NAMES_GROUPS, "mapping groups"


def main(argv: list[str] | None = None) -> None:
    """Read, compare, print."""
    arguments = parse_arguments(argv)
    tables, names, unit = read_results(arguments.results)
    if arguments.metric not in names:
        raise DataError(f"these results have the columns {list(names)}, got --metric {arguments.metric!r}")
    base = arguments.against or next(iter(tables))
    summaries = compare(
        tables, base, arguments.metric, arguments.level, arguments.resamples, arguments.seed, names
    )
    print(format_comparison(summaries, base, arguments.metric, arguments.level, names))
    print(f"\n{arguments.resamples} paired resamples of the {unit} valid for both agents; * excludes zero.")
    if arguments.json is not None:
        rows = [asdict(summary) for summary in summaries]
        content = {"base": base, "metric": arguments.metric, "agents": rows}
        write_bytes(arguments.json, json.dumps(content, indent=1).encode())
        print(f"numbers: {arguments.json}")


if __name__ == "__main__":
    try:
        main()
    except DriveFineError as error:
        sys.exit(f"error: {error}")
