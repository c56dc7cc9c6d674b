"""Compare agents on the same scenes: means of every sub-score, paired bootstrap intervals of the differences.

    python tools/compare.py drivefine=exp/drivefine blind=exp/ego_status_mlp cv=exp/constant_velocity

Each argument is NAME=FILE, FILE being a NAVSIM 1.1 result CSV (of tools/evaluate.py or of NAVSIM itself) or a
folder that holds `results.csv`. The others are compared with the first agent, or with --against.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.errors import DriveFineError
from drivefine_agent.evaluation.bootstrap import NUM_RESAMPLES
from drivefine_agent.evaluation.comparison import compare, format_comparison
from drivefine_agent.evaluation.results_csv import METRICS_V1, read_csv


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
        "--metric", default="score", choices=METRICS_V1, help="compared column (default: score)"
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
        if not separator or not name or not text:
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


def main(argv: list[str] | None = None) -> None:
    """Read, compare, print."""
    arguments = parse_arguments(argv)
    tables = {name: read_csv(path) for name, path in arguments.results.items()}
    base = arguments.against or next(iter(tables))
    summaries = compare(tables, base, arguments.metric, arguments.level, arguments.resamples, arguments.seed)
    print(format_comparison(summaries, base, arguments.metric, arguments.level))
    print(f"\n{arguments.resamples} paired resamples of the scenes valid for both agents; * excludes zero.")
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
