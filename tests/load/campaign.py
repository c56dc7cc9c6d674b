r"""Twenty thousand scenes and 1.4 million trajectories on two cores: throughput, memory, files, processes.

    make load                                     # all of it, into runs/load
    python tests/load/campaign.py --output FOLDER --scenes 200 --per-scene 5

Makes a world without images, then runs the commands that users run, each as a process of its own that may
open few files, and watches its process tree. Steps that are finished are not run again. Writes load.json and
load.md into the folder; fails if a command fails, has more processes than workers and two (itself and the
resource tracker of multiprocessing), or takes much more memory at the end than soon after the start. What a
command must keep of every scene until its end is allowed for (`Step.kept_kib`), of trajectories nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from process_watch import Sample, watch  # noqa: E402

from drivefine_agent.data.atomic import write_bytes  # noqa: E402

SCENES_PER_LOG = 85
"""A drive of 50 s with a scene at every frame has a few more."""
MAX_OPEN_FILES = 256
NUM_EXTRA_PROCESSES = 2
MAX_GROWTH_MIB = 150.0
"""What the main process's memory may grow by between the second tenth of a step's time and its end, beside
`Step.kept_kib`; and a worker's, between the second tenth of its presence and its end."""
MIN_SECONDS = 60.0
"""Of a shorter step the second tenth is still the start, and nothing is said of its memory."""
_SAY_EVERY_S = 20.0


@dataclass(frozen=True)
class Load:
    """How much."""

    output: Path
    num_scenes: int
    num_per_scene: int
    num_workers: int
    num_tiny_scenes: int
    num_reactive_rows: int

    @property
    def num_trajectories(self) -> int:
        """All."""
        return self.num_scenes * self.num_per_scene

    def path(self, name: str) -> str:
        """Of something in the output folder."""
        return str(self.output / name)


@dataclass(frozen=True)
class Step:
    """A command, and how many things of which kind it works through."""

    name: str
    count: int
    unit: str
    command: list[str]
    kept_kib: float = 0.0
    """What the main process may keep of each: frames, plans and scores, or of a world the map, which lies in
    one city and is written at once [KiB]."""


def steps_of(load: Load) -> list[Step]:
    """All steps in order; the last ones have fewer scenes, since they take longer for each."""
    world = [f"dataset_root={load.path('world')}", "train_test_split=world_test"]
    workers = f"num_workers={load.num_workers}"
    scenes = [*world, workers, f"max_scenes={load.num_scenes}"]
    cv = "agent=constant_velocity"

    def cache(rules: str) -> Step:
        arguments = [*scenes, f"benchmark={rules}", f"metric_cache_path={load.path(f'cache_{rules}')}"]
        command = _tool("build_scene_cache", *arguments)
        return Step(f"cache {rules}", load.num_scenes, "scenes", command, kept_kib=10.0)

    def evaluation(name: str, rules: str, count: int, *arguments: str) -> Step:
        command = _tool(
            "evaluate",
            *world,
            workers,
            f"max_scenes={count}",
            f"benchmark={rules}",
            f"metric_cache_path={load.path(f'cache_{rules}')}",
            f"output_dir={load.path(name.replace(' ', '_'))}",
            *arguments,
        )
        return Step(name, count, "scenes", command, kept_kib=20.0)

    def scores(name: str, rules: str, rows: str, count: int, *arguments: str) -> Step:
        command = _tool(
            "score_trajectories",
            f"benchmark={rules}",
            f"metric_cache_path={load.path(f'cache_{rules}')}",
            f"trajectories={load.path(rows)}",
            f"output={load.path(name.replace(' ', '_'))}.parquet",
            workers,
            *arguments,
        )
        return Step(name, count, "trajectories", command)

    make_world = _tool(
        "make_world",
        f"output={load.path('world')}",
        "num_train_logs=0",
        "num_val_logs=0",
        f"num_test_logs={-(-load.num_scenes // SCENES_PER_LOG)}",
        "test_frame_interval=1",
        "easy_share=1.0",
        "images=none",
        workers,
    )
    both_caches = f"metric_cache_path_v1={load.path('cache_navsim_v1')}"
    steps = [
        Step("world", load.num_scenes, "scenes", make_world, kept_kib=45.0),
        cache("navsim_v1"),
        evaluation("evaluate navsim_v1", "navsim_v1", load.num_scenes, cv),
        Step("trajectories", load.num_trajectories, "trajectories", [*_itself(load), "--only", "rows"]),
        scores("score navsim_v1", "navsim_v1", "rows.parquet", load.num_trajectories),
        cache("navsim_v2"),
        scores("score navsim_v2", "navsim_v2", "rows.parquet", load.num_trajectories),
        evaluation("evaluate navsim_v2", "navsim_v2", load.num_scenes, cv, both_caches),
    ]
    if load.num_reactive_rows:
        few = scores(
            "score reactive", "navsim_v2", "few_rows.parquet", load.num_reactive_rows, "traffic=reactive"
        )
        steps.append(few)
    if load.num_tiny_scenes:
        model = [*_itself(load), "--only", "model"]
        planner = ["agent=drivefine_tiny", f"agent.checkpoint_path={load.path('model')}", "blank_image=true"]
        steps.append(Step("tiny model", 1, "models", model))
        steps.append(evaluation("evaluate drivefine_tiny", "navsim_v1", load.num_tiny_scenes, *planner))
    return steps


def _tool(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / f"{name}.py"), *arguments]


def _itself(load: Load) -> list[str]:
    return [
        sys.executable,
        str(Path(__file__).resolve()),
        f"--output={load.output}",
        f"--scenes={load.num_scenes}",
        f"--per-scene={load.num_per_scene}",
        f"--reactive-rows={load.num_reactive_rows}",
    ]


def write_rows(load: Load) -> None:
    """Trajectories of every scene: what constant velocity planned, faster, slower, and with drifts."""
    predictions = pq.read_table(load.path("evaluate_navsim_v1/predictions.parquet"))
    tokens = predictions.column("token").to_pylist()
    poses = np.asarray(predictions.column("poses").to_pylist()).reshape(-1, 1, 8, 3)
    if len(tokens) != load.num_scenes:
        raise SystemExit(f"expected {load.num_scenes} scenes, the world has {len(tokens)}: make more logs")
    rng = np.random.default_rng(0)
    schema = pa.schema(
        [("token", pa.string()), ("trajectory_id", pa.string()), ("poses", pa.list_(pa.float64()))]
    )
    num_few = 0
    with (
        pq.ParquetWriter(load.path("rows.parquet"), schema) as writer,
        pq.ParquetWriter(load.path("few_rows.parquet"), schema) as few,
    ):
        for start in range(0, len(tokens), 1000):
            some = tokens[start : start + 1000]
            shape = (len(some), load.num_per_scene, 1, 1)
            drift = rng.normal(0.0, 0.3, shape) * np.linspace(0.125, 1.0, 8)[None, None, :, None]
            varied = poses[start : start + 1000] * rng.uniform(0.6, 1.3, shape) + drift * [0.0, 1.0, 0.02]
            number = len(some) * load.num_per_scene
            columns = {
                "token": pa.array(np.repeat(some, load.num_per_scene)),
                "trajectory_id": pa.array([str(i) for _ in some for i in range(load.num_per_scene)]),
                "poses": pa.ListArray.from_arrays(np.arange(number + 1, dtype=np.int32) * 24, varied.ravel()),
            }
            table = pa.table(columns, schema=schema)
            writer.write_table(table)
            few.write_table(table.slice(0, load.num_reactive_rows - num_few))
            num_few += min(number, load.num_reactive_rows - num_few)


def make_model(load: Load) -> None:
    """A model of random weights."""
    from drivefine_agent.training.config import ModelChoice
    from drivefine_agent.training.model_choice import build_planner

    build_planner(ModelChoice(preset="tiny"), seed=0).save_pretrained(load.output / "model")


def run_step(step: Step, load: Load) -> dict[str, Any]:
    """Run a step, unless it has been; what came out, with the rules it broke."""
    result_path = load.output / "steps" / f"{step.name.replace(' ', '_')}.json"
    key = json.dumps(step.command)
    if result_path.exists():
        kept = json.loads(result_path.read_text())
        if kept["command"] == key and not kept["broken"]:
            print(f"{step.name}: kept from an earlier run", flush=True)
            return kept
    result_path.parent.mkdir(parents=True, exist_ok=True)
    print(f"{step.name}: {step.count:,} {step.unit} ...", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = result_path.with_suffix(".log")
    watched = watch(
        step.command,
        log,
        max_open_files=MAX_OPEN_FILES,
        environment=environment,
        on_sample=_sayer(step),
    )
    result = {
        "name": step.name,
        "count": step.count,
        "unit": step.unit,
        "per_second": round(step.count / watched.seconds, 2),
        **watched.summary(),
        "kept_kib": step.kept_kib,
        "command": key,
    }
    result["broken"] = broken_rules(result, load.num_workers)
    if watched.exit_code:
        print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
    write_bytes(result_path, (json.dumps(result, indent=1) + "\n").encode())
    print(f"{step.name}: {watched.seconds:.0f} s {'; '.join(result['broken'])}", flush=True)
    return result


def _sayer(step: Step) -> Callable[[Sample], None]:
    last_s = 0.0

    def say(sample: Sample) -> None:
        nonlocal last_s
        if sample.seconds - last_s >= _SAY_EVERY_S:
            last_s = sample.seconds
            print(
                f"{step.name}: {sample.seconds:.0f} s, {sample.num_processes} processes, main "
                f"{sample.main_mib:.0f} MiB, largest worker {sample.worker_mib:.0f} MiB, "
                f"{sample.num_open_files} open files",
                flush=True,
            )

    return say


def broken_rules(result: dict[str, Any], num_workers: int) -> list[str]:
    """What went wrong in a step; empty if nothing did."""
    broken = []
    if result["exit_code"]:
        broken.append(f"it ended with exit code {result['exit_code']}")
    if result["num_processes"] > num_workers + NUM_EXTRA_PROCESSES:
        broken.append(f"{result['num_processes']} processes with {num_workers} workers")
    kept_mib = {"main_mib": result["kept_kib"] * result["count"] / 1024}
    for name, tenths in result["tenths"].items():
        if result["seconds"] < MIN_SECONDS:
            continue
        start = tenths[1] if name == "main_mib" else _second_of([value for value in tenths if value > 0])
        if tenths[-1] > start + MAX_GROWTH_MIB + kept_mib.get(name, 0.0):
            broken.append(f"{name} grew from {start:.0f} to {tenths[-1]:.0f}")
    return broken


def _second_of(values: list[float]) -> float:
    """Or the last, if there are fewer."""
    return values[:2][-1] if values else 0.0


def report(results: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = [
        "| step | number | time [s] | per second | main, 2nd tenth [MiB] | main, end | main, peak "
        "| worker, peak | processes | open files |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        main = result["tenths"]["main_mib"]
        lines.append(
            f"| {result['name']} | {result['count']:,} {result['unit']} | {result['seconds']:,.0f} "
            f"| {result['per_second']:,.0f} | {main[1]:.0f} | {main[-1]:.0f} | {result['main_mib']:.0f} "
            f"| {result['worker_mib']:.0f} | {result['num_processes']} | {result['num_open_files']} |"
        )
    return "\n".join(lines) + "\n"


def run_campaign(load: Load, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Steps in order; stops after a command that failed, since the next ones need what it makes."""
    results = []
    for step in steps:
        results.append(run_step(step, load))
        write_bytes(load.output / "load.json", (json.dumps(results, indent=1) + "\n").encode())
        write_bytes(load.output / "load.md", report(results).encode())
        if results[-1]["exit_code"]:
            break
    return results


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/load"))
    parser.add_argument("--scenes", type=int, default=20_000)
    parser.add_argument("--per-scene", type=int, default=70, help="trajectories of a scene")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tiny-scenes", type=int, default=200, help="scenes for drivefine_tiny; 0: none")
    parser.add_argument("--reactive-rows", type=int, default=1000, help="in reactive traffic; 0: none")
    parser.add_argument("--only", choices=("rows", "model"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    load = Load(
        given.output.resolve(),
        given.scenes,
        given.per_scene,
        given.workers,
        given.tiny_scenes,
        given.reactive_rows,
    )
    if given.only is not None:
        {"rows": write_rows, "model": make_model}[given.only](load)
        return
    results = run_campaign(load, steps_of(load))
    print(report(results))
    broken = [f"{result['name']}: {rule}" for result in results for rule in result["broken"]]
    if broken:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
