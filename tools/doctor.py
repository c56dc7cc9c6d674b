r"""Say whether this machine, this NAVSIM and this data set are fit for use, and what to do if not.

    python tools/doctor.py                                        # everything, by NAVSIM's variables
    python tools/doctor.py --only blas,navsim --python ~/envs/navsim/bin/python   # where NAVSIM scores
    python tools/doctor.py --dataset DATASET --splits navtest,navtrain --output doctor
    python tools/doctor.py --only hardware --model llada_8b

Every finding is ok, a warning or a failure, with what was seen and what to do. Exit code 0: healthy (warnings
allowed), 1: failures, 2: wrong arguments. No Hydra here: this must run where Hydra is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from drivefine_agent.doctor.findings import Status, as_plain, worst
from drivefine_agent.doctor.options import DoctorOptions
from drivefine_agent.doctor.run import CHECKS, run_checks
from drivefine_agent.doctor.text import format_results


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=names, default=(), metavar="CHECK,...", help=", ".join(CHECKS))
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="interpreter that runs NAVSIM (3.9 or later), for blas, navsim and hydra; default: this one",
    )
    parser.add_argument(
        "--dataset",
        metavar="DIR",
        help="data set in one folder; default: OPENSCENE_DATA_ROOT, NUPLAN_MAPS_ROOT",
    )
    parser.add_argument(
        "--splits",
        type=names,
        default=(),
        metavar="SPLIT,...",
        help="names or YAML files; default: all known",
    )
    parser.add_argument(
        "--caches",
        type=names,
        default=(),
        metavar="DIR,...",
        help="cache folders of any kind; default: those in NAVSIM_EXP_ROOT",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/doctor"),
        metavar="DIR",
        help="for lists of missing files, and splits of what is usable (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=num_cores(),
        help="processes that read logs (default: one per core)",
    )
    parser.add_argument("--deep", action="store_true", help="open every image and every cached scene")
    parser.add_argument("--model", choices=("tiny", "debug", "llada_8b"), default="tiny")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="a model's folder, in place of --model"
    )
    parsed = parser.parse_args(arguments)
    unknown = [name for name in parsed.only if name not in CHECKS]
    if unknown:
        parser.error(f"--only takes {', '.join(CHECKS)}; got {', '.join(unknown)}")
    return parsed


def num_cores() -> int:
    """Cores that this process may use; where the system cannot tell (macOS), all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def names(text: str) -> tuple[str, ...]:
    """A list with commas."""
    return tuple(part for part in text.split(",") if part)


def main() -> None:
    """Entry point."""
    arguments = parse()
    options = DoctorOptions(
        python=arguments.python,
        dataset_root=arguments.dataset,
        splits=arguments.splits,
        caches=tuple(Path(folder) for folder in arguments.caches),
        output=arguments.output,
        deep=arguments.deep,
        model=arguments.model,
        checkpoint=arguments.checkpoint,
        num_workers=arguments.workers,
        show_progress=not arguments.json,
    )
    results = run_checks(options, arguments.only)
    print(json.dumps(as_plain(results), indent=1) if arguments.json else format_results(results))
    sys.exit(1 if worst(result.status for result in results) is Status.FAILURE else 0)


if __name__ == "__main__":
    main()
