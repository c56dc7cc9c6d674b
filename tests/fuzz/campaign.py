"""Fuzzes every reader for a while, each in a process of its own: make fuzz, or

    python tests/fuzz/campaign.py [--seconds 30] [--seed 0] [--output runs/fuzz]

Prints a table of runs and findings; findings.jsonl in the output folder says which seed makes each again.
Ends with 1 if there are findings.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from checked import Bench, Finding, new_root  # noqa: E402
from readers import READERS  # noqa: E402
from tqdm import tqdm  # noqa: E402

ALL = {reader.name: reader for reader in READERS}


class Result(NamedTuple):
    """What came of one reader."""

    num_runs: int
    findings: list[tuple[int, Finding]]
    """Seed and finding, the first of each kind and place."""


def fuzz(name: str, seconds: float, seed: int, connection: Connection) -> None:
    """In a process of its own: sends the seed before each run and the finding after it, None at the end."""
    root = new_root()
    try:
        bench = Bench(ALL[name], root)
        stop = time.monotonic() + seconds
        while time.monotonic() < stop:
            connection.send(seed)
            connection.send(bench.finding(bench.damaged(Random(seed))))
            seed += 1
        connection.send(None)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(name: str, seconds: float, seed: int) -> Result:
    """One reader; a process that dies is a finding of its last seed, and another goes on behind it."""
    num_runs, findings = 0, dict[tuple[str, str], tuple[int, Finding]]()
    stop = time.monotonic() + seconds
    while (left := stop - time.monotonic()) > 0:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=fuzz, args=(name, left, seed, theirs))
        process.start()
        theirs.close()
        is_done, began = False, False
        try:
            while (message := ours.recv()) is not None:
                seed, began = message, True
                finding = ours.recv()
                num_runs, seed, began = num_runs + 1, seed + 1, False
                if finding is not None:
                    findings.setdefault((finding.kind, finding.text[-80:]), (seed - 1, finding))
            is_done = True
        except EOFError:
            pass  # the process died, which is looked at below
        process.join()
        if is_done:
            break
        death = Finding(name, "died", f"exit code {process.exitcode}")
        if not began:
            findings.setdefault((death.kind, "at the start"), (seed, death))
            break
        findings.setdefault((death.kind, death.text), (seed, death))
        num_runs, seed = num_runs + 1, seed + 1
    return Result(num_runs, list(findings.values()))


def main() -> int:
    """All readers, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("readers", nargs="*", help="names of readers; none: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="per reader (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"), help="folder (default: runs/fuzz)")
    arguments = parser.parse_args()
    unknown = set(arguments.readers) - set(ALL)
    if unknown:
        parser.error(f"readers must be among {sorted(ALL)}, got {sorted(unknown)}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    lines = ["| Reader | runs | findings |", "|---|---|---|"]
    num_findings = 0
    with (arguments.output / "findings.jsonl").open("w", encoding="utf-8") as file:
        for name in tqdm(arguments.readers or list(ALL), desc="Fuzzing", unit="reader"):
            result = run(name, arguments.seconds, arguments.seed)
            lines.append(f"| {name} | {result.num_runs:,} | {len(result.findings)} |")
            num_findings += len(result.findings)
            for seed, finding in result.findings:
                file.write(json.dumps({"seed": seed, **finding._asdict()}) + "\n")
            file.flush()
    table = "\n".join(lines) + "\n"
    (arguments.output / "table.md").write_text(table)
    print(f"{table}\n{num_findings} findings: {arguments.output / 'findings.jsonl'}")
    return 1 if num_findings else 0


if __name__ == "__main__":
    sys.exit(main())
