"""Measures what users wait for: scenes, scoring, decoding, reinforcement learning; writes docs/benchmarks.md.

    make bench                                     # everything, and the report
    OMP_NUM_THREADS=1 python tools/bench.py scoring         # one part, printed only
    DRIVEFINE_NAVSIM_PYTHON=PYTHON python tools/bench.py official --navsim NAVSIM_1.1 --navsim NAVSIM_2.2

Parts: scenes, official (a real NAVSIM on the same scenes, where there is one), scoring, workers, scaling,
stages, decoding, reinforcement. Figures are medians over scenes or repetitions of this run on this machine,
on one core unless said otherwise; ratios compare two ways within the run. Makes small synthetic worlds of its
own, one with few and one with many roads and road users.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from bench_common import World, machine_lines, world_of
from bench_decoding import decoding_report
from bench_reinforcement import reinforcement_report
from bench_scenes import Rules, official_report, scenes_report
from bench_scoring import (
    caches_of,
    reference_report,
    scaling_report,
    speed_report,
    stages_report,
    workers_report,
)

from drivefine_agent.scoring.cache import SceneCache

REPORT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
NUM_SCENES = 40
NUM_DENSE_SCENES = 12


class Bench:
    """The parts, and the worlds and caches that they share."""

    def __init__(self, folder: Path, checkouts: list[Path]) -> None:
        self._folder = folder
        self._checkouts = checkouts

    @cached_property
    def world(self) -> World:
        """Few roads and road users."""
        return world_of(self._folder / "world", NUM_SCENES)

    @cached_property
    def dense_world(self) -> World:
        """As many as in a city."""
        return world_of(self._folder / "dense_world", NUM_DENSE_SCENES, is_dense=True)

    @cached_property
    def caches(self) -> list[tuple[Rules, SceneCache]]:
        """Of `world`."""
        return caches_of(self.world, self._folder / "caches")

    @cached_property
    def dense_caches(self) -> list[tuple[Rules, SceneCache]]:
        """Of `dense_world`."""
        return caches_of(self.dense_world, self._folder / "dense_caches")

    def scenes(self) -> list[str]:
        """Preparing and loading scenes."""
        sparse = scenes_report(self.world, self._folder / "scenes")
        return [
            *sparse[:-2],
            "",
            "Dense scenes:",
            "",
            *scenes_report(self.dense_world, self._folder / "dense_scenes"),
        ]

    def official(self) -> list[str]:
        """A real NAVSIM on the same scenes."""
        sparse = official_report(self.world, self._folder / "sparse", self._checkouts)
        dense = official_report(self.dense_world, self._folder / "dense", self._checkouts)
        return ["Few roads and road users:", "", *sparse, "", "Dense scenes:", "", *dense]

    def scoring(self) -> list[str]:
        """Groups of trajectories, and the readable reference."""
        speed = speed_report({"sparse": self.caches, "dense": self.dense_caches})
        return [*speed, "", *reference_report(self.caches[0][1])]

    def workers(self) -> list[str]:
        """Threads and processes."""
        return workers_report(self.caches[0][1])

    def scaling(self) -> list[str]:
        """Trajectories, road users, polygons."""
        return scaling_report(self.dense_caches[0][1])

    def stages(self) -> list[str]:
        """Where the time goes."""
        return ["Dense scenes:", "", *stages_report(self.dense_caches)]

    def decoding(self) -> list[str]:
        """The model's answer to one scene."""
        return decoding_report()

    def reinforcement(self) -> list[str]:
        """Steps of training by reinforcement."""
        return reinforcement_report(self._folder / "reinforcement")


TITLES = {
    "scenes": "Scenes prepared, kept and loaded",
    "official": "Beside a real NAVSIM",
    "scoring": "Scoring",
    "workers": "Many scenes, several workers",
    "scaling": "How the time of NAVSIM 1.1's score grows",
    "stages": "Where the time goes",
    "decoding": "Decoding, one scene",
    "reinforcement": "Reinforcement learning",
}


def run_part(name: str, part: Callable[[], list[str]]) -> list[str]:
    """Runs and prints a part; returns it as Markdown."""
    print(f"\n{TITLES[name]}\n", flush=True)
    start = time.perf_counter()
    lines = part()
    print("\n".join(lines))
    print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)
    lines = [f"* {line.strip()}" if line.startswith("  ") else line for line in lines]
    return [f"## {TITLES[name]}", "", *lines, ""]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(TITLES)} (default: all)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench"), help="folder for worlds and caches"
    )
    parser.add_argument(
        "--navsim", type=Path, action="append", default=[], help="checkout of NAVSIM; may be given twice"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts if name not in TITLES]
    if unknown:
        parser.error(f"parts of tools/bench.py must be among {', '.join(TITLES)}, got {', '.join(unknown)}")
    torch.set_num_threads(1)  # one core, so that figures compare between machines

    bench = Bench(arguments.output, arguments.navsim)
    parts = [run_part(name, getattr(bench, name)) for name in arguments.parts or TITLES]
    if not arguments.parts:
        head = [
            "# Benchmarks",
            "",
            "Written by `make bench` (`tools/bench.py`) in one run on one machine, on the synthetic world,"
            " not on nuPlan's data. Figures are medians.",
            "",
            *machine_lines(),
            "",
        ]
        REPORT.write_text("\n".join([*head, *(line for part in parts for line in part)]).rstrip() + "\n")
        print(f"\nwritten: {REPORT}")


if __name__ == "__main__":
    main()
