"""Compare two scene caches, e.g. one converted from NAVSIM's metric caches and one of our own making.

    python tools/diff_scene_caches.py CACHE_A CACHE_B
    python tools/diff_scene_caches.py CACHE_A CACHE_B --tolerance 1e-9 --json differences.json

Prints per field how many scenes differ by more than the tolerance and by how much, and which scenes do. Exits
with 1 if any does, or if a scene is in one cache only (--common: such scenes are left out). What only one of
them knows (the human's poses are not in caches of NAVSIM 1.1) is told, but is no difference.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.scoring.cache import SceneCache, read_manifest
from drivefine_agent.scoring.scene_diff import DEFAULT_TOLERANCE, Difference, diff_scenes, format_summary

_NUM_LISTED = 20  # scenes printed; --json has all


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, help="folder of a scene cache")
    parser.add_argument("second", type=Path, help="folder of another")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=DEFAULT_TOLERANCE,
        help="larger differences count [m, rad, m/s ...] (default: %(default)s)",
    )
    parser.add_argument("--common", action="store_true", help="leave out scenes that are in one cache only")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the differences of every scene here")
    arguments = parser.parse_args(argv)
    if not arguments.tolerance >= 0.0:
        parser.error(f"--tolerance must not be negative, got {arguments.tolerance}")
    return arguments


def open_caches(first: Path, second: Path) -> tuple[SceneCache, SceneCache]:
    """Both caches, which must be of the same rules."""
    rules = [read_manifest(folder, None)["rules"] for folder in (first, second)]
    if rules[0] != rules[1]:
        raise DataError(
            f"first and second must be caches of the same rules, got '{rules[0]}' and '{rules[1]}' in "
            f"{first} and {second}: choose two of one benchmark"
        )
    return SceneCache(first, rules[0]), SceneCache(second, rules[1])


def print_scenes(differences: list[Difference], tolerance: float) -> None:
    """The scenes that differ, with the fields in which they do."""
    by_token: dict[str, list[str]] = {}
    for item in differences:
        if item.counts(tolerance):
            text = f"{item.field} {item.largest:.3g} {item.note}".rstrip()
            by_token.setdefault(item.token, []).append(text)
    for token, texts in list(by_token.items())[:_NUM_LISTED]:
        print(f"  {token}: {', '.join(texts)}")
    if len(by_token) > _NUM_LISTED:
        print(f"  and {len(by_token) - _NUM_LISTED} more")


def main(argv: list[str] | None = None) -> int:
    """Compare, print; returns the exit code."""
    arguments = parse_arguments(argv)
    first, second = open_caches(arguments.first, arguments.second)
    common = [token for token in first.tokens if token in second]
    only = {
        "first": sorted(set(first.tokens) - set(second.tokens)),
        "second": sorted(set(second.tokens) - set(first.tokens)),
    }
    if not common:
        raise DataError(
            "first and second of tools/diff_scene_caches.py need a scene in common, got none: "
            f"{arguments.first}, {arguments.second}; choose others"
        )
    differences: list[Difference] = []
    for token in common:
        differences += diff_scenes(first[token], second[token])
    tolerance = arguments.tolerance
    differing = {item.token for item in differences if item.counts(tolerance)}
    print(format_summary(differences, tolerance))
    print(f"\n{len(common)} scenes compared, {len(differing)} differ by more than {tolerance:g}")
    print_scenes(differences, tolerance)
    for name, tokens in only.items():
        if tokens:
            print(f"{len(tokens)} scenes are in the {name} cache only, e.g. {tokens[0]}")
    if arguments.json is not None:
        # JSON has neither infinity nor NaN
        rows = [
            asdict(item) | {"largest": item.largest if np.isfinite(item.largest) else str(item.largest)}
            for item in differences
        ]
        content = {"tolerance": tolerance, "only": only, "differences": rows}
        write_bytes(arguments.json, json.dumps(content, indent=1).encode())
        print(f"differences: {arguments.json}")
    is_incomplete = any(only.values()) and not arguments.common
    return 1 if differing or is_incomplete else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DriveFineError as error:
        sys.exit(f"error: {error}")
