"""Runs what tables need, each command once: data, training of every arm and seed, evaluations."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from drivefine_agent.commands import run_command, stop_commands
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.json_text import read_json
from drivefine_agent.errors import DataError
from drivefine_agent.reproduction.arms import ARMS, MLP, SCORER, with_parents
from drivefine_agent.reproduction.plans import COARSE, PLANS
from drivefine_agent.reproduction.tables import Benchmark, Table

_DONE_NAME = "command.json"
_INPUTS_NAME = "made_from.json"
_UNTRAINED = "untrained"


@dataclass(frozen=True)
class Settings:
    """What navsim_configs/reproduce.yaml holds."""

    tables: tuple[str, ...]
    """Of `tables.TABLES`."""
    output: str
    """Folder of data, models and evaluations; what is there already is not made again."""
    results: str
    """Folder of the pages."""
    seeds: tuple[int, ...]
    jobs: int
    """Commands at a time, one core each."""
    world: Mapping[str, Any] | None
    """Arguments of tools/make_world.py for training; None: `train` names data that exist."""
    test_world: Mapping[str, Any] | None
    two_stage_world: Mapping[str, Any] | None
    train: Mapping[str, str | None]
    """dataset_root and train_test_split, or other keys of the data."""
    validation: Mapping[str, str | None]
    test: Mapping[str, str | None]
    two_stage: Mapping[str, str | None]
    recipes: Mapping[str, tuple[str, ...]]
    """Overrides of the training scripts, by the arms' recipe."""
    evaluation: tuple[str, ...] = ()
    """Overrides of tools/evaluate.py."""
    coarse: tuple[str, ...] = ()
    """Further ones for models trained by the recipe `rl_coarse`, and for what they are compared with."""
    same_as: Mapping[str, str] = field(default_factory=dict)
    """Plans that are another plan: `hybrid_coarse_n2` where the main model has 2 refinement blocks."""
    skip: tuple[str, ...] = ()
    """Plans whose rows are left out."""
    latency: tuple[str, ...] = ()
    """Further arguments of tools/bench_latency.py (Figure 7)."""
    launcher: tuple[str, ...] = ()
    """Command before a script of rl/ in place of this Python, such as torchrun and its options."""


def _arguments(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in values.items() if value is not None)


def run_once(
    folder: Path,
    script: str,
    *arguments: str,
    log: Path | None,
    launcher: Sequence[str] = (),
    made_from: Sequence[Path] = (),
) -> None:
    """Runs a command that fills a folder, unless the same one has done so before, from the same inputs.

    Args:
      folder: what it fills.
      script: path below the repository's root.
      arguments: of the script.
      log: file for what it prints.
      launcher: see `commands.run_command`.
      made_from: folders that this function has filled and that the command reads.

    Raises:
      DataError: another command has filled the folder, or begun to, or an input was made anew in another way.
    """
    done, inputs = folder / _DONE_NAME, folder / _INPUTS_NAME
    command, found = [script, *arguments], {str(path): _made_by(path) for path in made_from}
    if made_from and inputs.is_file() and read_json(inputs) != found:
        raise DataError(
            f"what is in {folder} was made from other inputs than those that lie there now (see {inputs}): "
            "delete the folder"
        )
    if done.is_file():
        if _record(folder)["command"] != command:
            raise DataError(
                f"{folder} was made by another command than this configuration asks for (see {done}): choose "
                "another output, or delete the folder"
            )
        return
    if made_from:
        write_bytes(inputs, (json.dumps(found, indent=1) + "\n").encode())
    started = time.monotonic()
    run_command(script, *arguments, log=log, launcher=launcher)
    record = {"command": command, "seconds": round(time.monotonic() - started, 1)}
    write_bytes(done, (json.dumps(record, indent=1) + "\n").encode())


def _made_by(folder: Path) -> str:
    """SHA-256 of the command that has filled a folder, and so on for what that was made from."""
    done, inputs = folder / _DONE_NAME, folder / _INPUTS_NAME
    command = json.dumps(_record(folder)["command"]).encode() if done.is_file() else b""
    return hashlib.sha256(command + (inputs.read_bytes() if inputs.is_file() else b"")).hexdigest()


def _record(folder: Path) -> dict[str, Any]:
    """The command that has filled a folder, and its seconds."""
    file = folder / _DONE_NAME
    record = read_json(file)
    if not isinstance(record, dict) or not {"command", "seconds"} <= set(record):
        raise DataError(
            f"cannot read what made {folder} from {file}: choose another output, or delete the folder"
        )
    return record


def read_latencies(path: Path) -> dict[tuple[str, int], float]:
    """Latency of a plan [ms] by method and steps, as tools/bench_latency.py writes it.

    Raises:
      DataError: it cannot be read, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            return {(row["method"], int(row["steps"])): float(row["total_ms"]) for row in rows}
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"latencies need method, steps and total_ms per line ({error}): {path}; delete it to measure "
            "again"
        ) from error


class Reproduction:
    """Folders and commands of one output folder."""

    def __init__(self, settings: Settings) -> None:
        """See `Settings`."""
        self.settings = settings
        self.output = Path(settings.output)
        worlds = {
            "world": settings.world,
            "test_world": settings.test_world,
            "two_stage_world": settings.two_stage_world,
        }
        self._worlds = {self.output / name: made for name, made in worlds.items() if made is not None}

    # ------------------------------------------------------------------------------------------ data

    def prepare(self, benchmarks: Collection[Benchmark], trains: bool, has_scorer: bool) -> None:
        """Worlds, and scenes prepared for scoring, as far as they are needed."""
        needed = [self.settings.train, self.settings.validation] if trains else []
        needed += [self.settings.test] if {"navsim_v1", "navsim_v2"} & set(benchmarks) else []
        needed += [self.settings.two_stage] if "navhard_two_stage" in benchmarks else []
        for folder in dict.fromkeys(folder for data in needed for folder in self._world_of(data)):
            arguments = _arguments(self._worlds[folder])
            run_once(folder, "tools/make_world.py", f"output={folder}", *arguments, log=None)
        if trains:
            self._build_cache("cache_train", self.settings.train, "navsim_v1")
        if has_scorer:
            self._build_cache("cache_validation", self.settings.validation, "navsim_v1")
        if "navsim_v1" in benchmarks:
            self._build_cache("cache_test", self.settings.test, "navsim_v1")
        if "navsim_v2" in benchmarks:
            self._build_cache("cache_test_v2", self.settings.test, "navsim_v2")

    def _build_cache(self, name: str, data: Mapping[str, str | None], benchmark: Benchmark) -> None:
        folder = self.output / name
        arguments = (*_arguments(data), f"benchmark={benchmark}", f"metric_cache_path={folder}")
        run_once(folder, "tools/build_scene_cache.py", *arguments, log=None, made_from=self._world_of(data))

    def _world_of(self, data: Mapping[str, str | None]) -> list[Path]:
        """The folder of the data, if it is a world that was made here."""
        return [folder for folder in self._worlds if str(folder) == data.get("dataset_root")]

    # ------------------------------------------------------------------------------------------ training

    def arm_folder(self, arm: str | None, seed: int) -> Path:
        """Where an arm's model lies; evaluations of what is not trained have one place for all seeds."""
        return self.output / _UNTRAINED if arm is None else self.output / f"seed{seed}" / arm

    def train(self, name: str, seed: int) -> None:
        """One arm, whose parent is trained."""
        arm, folder = ARMS[name], self.arm_folder(name, seed)
        arguments = [
            *_arguments(self.settings.train),
            f"output_dir={folder}",
            f"{arm.seed_key}={seed}",
        ]
        if arm.script != MLP:
            arguments.append(f"tile_cache_path={self.output / 'tiles'}")
        made_from = [*self._world_of(self.settings.train)]
        made_from += [self.arm_folder(needed, seed) for needed in arm.needs]
        if arm.script.startswith("rl/") or arm.script == SCORER:
            made_from.append(self.output / "cache_train")
            arguments.append(f"metric_cache_path={made_from[-1]}")
        if arm.script == SCORER:
            made_from.append(self.output / "cache_validation")
            arguments.append(f"validation_metric_cache_path={made_from[-1]}")
        if arm.parent is not None:
            arguments.append(arm.start.format(self.arm_folder(arm.parent, seed)))
        if arm.scorer is not None:
            arguments.append(f"reward.scorer_path={self.arm_folder(arm.scorer, seed) / 'scorer'}")
        arguments += [*self.settings.recipes[arm.recipe], *arm.overrides]
        log = folder.with_name(f"{name}.log")
        launcher = self.settings.launcher if arm.script.startswith("rl/") else ()
        run_once(folder, arm.script, *arguments, log=log, launcher=launcher, made_from=made_from)

    # ------------------------------------------------------------------------------------------ evaluation

    def evaluation_folder(self, plan: str, benchmark: Benchmark, seed: int) -> Path:
        """Where tools/evaluate.py writes."""
        return self.arm_folder(PLANS[plan].arm, seed) / "evaluations" / plan / benchmark

    def evaluate(self, plan: str, benchmark: Benchmark, seed: int) -> None:
        """One evaluation of a trained arm. EPDMS of one stage is that of the trajectories PDMS was given."""
        folder = self.evaluation_folder(plan, benchmark, seed)
        arm = self.arm_folder(PLANS[plan].arm, seed)
        agent: tuple[str, ...] = ()
        for override in PLANS[plan].overrides:
            agent += self.settings.coarse if override == COARSE else (override.replace("{}", str(arm)),)
        if (scorer := PLANS[plan].scorer) is not None:
            agent += (f"agent.scorer_path={self.arm_folder(scorer, seed) / 'scorer'}",)
        made_from = [self.arm_folder(needed, seed) for needed in PLANS[plan].needs]
        if benchmark == "navsim_v2":
            planned = self.evaluation_folder(plan, "navsim_v1", seed)
            made_from = [planned, self.output / "cache_test_v2"]
            agent = ("agent=none", f"predictions={planned / 'predictions.parquet'}", "pdms=false")
            data = (*_arguments(self.settings.test), f"metric_cache_path={self.output / 'cache_test_v2'}")
        elif benchmark == "navhard_two_stage":
            data = _arguments(self.settings.two_stage)
            made_from += self._world_of(self.settings.two_stage)
        else:
            made_from.append(self.output / "cache_test")
            data = (*_arguments(self.settings.test), f"metric_cache_path={self.output / 'cache_test'}")
        extra = () if benchmark == "navsim_v2" else self.settings.evaluation
        log = folder.with_suffix(".log")
        arguments = (f"benchmark={benchmark}", *agent, *data, *extra, f"output_dir={folder}")
        run_once(folder, "tools/evaluate.py", *arguments, log=log, made_from=made_from)

    # ------------------------------------------------------------------------------------------ latency

    def latencies(self) -> dict[tuple[str, int], float]:
        """Latency of a plan [ms] by method and steps, of the main model's first seed.

        Measured once for a folder of results, with no other command beside it.
        """
        kept = Path(self.settings.results) / "scores" / "latency.csv"
        if not kept.is_file():
            folder, arm = self.output / "latency", self.arm_folder("hybrid", self.settings.seeds[0])
            arguments = ("--checkpoint", str(arm / "model"), "--output", str(folder), *self.settings.latency)
            run_once(folder, "tools/bench_latency.py", *arguments, log=None, made_from=[arm])
            write_bytes(kept, (folder / "latency.csv").read_bytes())
        return read_latencies(kept)

    # ------------------------------------------------------------------------------------------ all

    def run(self, tables: Mapping[int, Sequence[Table]]) -> None:
        """Everything that tables show of some seeds.

        Args:
          tables: by seed.
        """
        wanted = {seed: _evaluations(shown) for seed, shown in tables.items() if shown}
        if not wanted:
            return
        arms = {seed: _arms(evaluations) for seed, evaluations in wanted.items()}
        has_scorer = any(ARMS[name].script == SCORER for names in arms.values() for name in names)
        benchmarks = {benchmark for evaluations in wanted.values() for _, benchmark in evaluations}
        self.prepare(benchmarks, any(arms.values()), has_scorer)

        steps: dict[Key, Step] = {}
        for seed, evaluations in wanted.items():
            for name in arms[seed]:
                after = tuple(("train", needed, seed) for needed in ARMS[name].needs)
                steps["train", name, seed] = Step(partial(self.train, name, seed), after)
            for plan, benchmark in evaluations:
                shared = min(wanted) if PLANS[plan].arm is None else seed
                after = tuple(("train", needed, shared) for needed in PLANS[plan].needs)
                if benchmark == "navsim_v2":
                    after = (("navsim_v1", plan, shared),)
                steps[benchmark, plan, shared] = Step(partial(self.evaluate, plan, benchmark, shared), after)
        run_steps(steps, self.settings.jobs)

    def minutes(self, table: Table, seed: int) -> float:
        """What training and evaluating a table's rows took, one by one, for a seed that was run here."""
        evaluations = _evaluations([table])
        folders = [self.arm_folder(name, seed) for name in _arms(evaluations)]
        folders += [self.evaluation_folder(plan, benchmark, seed) for plan, benchmark in evaluations]
        return sum(_record(folder)["seconds"] for folder in folders) / 60

    def fingerprint(self, table: Table) -> dict[str, Any]:
        """The settings that a table's numbers depend on."""
        settings, recipes = self.settings, {ARMS[name].recipe for name in _arms(_evaluations([table]))}
        is_two_stage = table.benchmarks == ("navhard_two_stage",)
        data = [settings.train, settings.validation, settings.two_stage if is_two_stage else settings.test]
        values = {
            "data": data,
            "worlds": [self._worlds[folder] for keys in data for folder in self._world_of(keys)],
            "recipes": {name: settings.recipes[name] for name in sorted(recipes)},
            "evaluation": [settings.evaluation, settings.coarse],
            "plans": {row.title: [row.plan, row.is_draft] for row in table.rows},
        }
        told: dict[str, Any] = json.loads(json.dumps(values).replace(f'"{settings.output}/', '"${output}/'))
        return told


def _evaluations(tables: Iterable[Table]) -> list[tuple[str, Benchmark]]:
    """Plans and benchmarks that tables show, and what these are made from."""
    wanted: dict[tuple[str, Benchmark], None] = {}
    for table in tables:
        for row in table.rows:
            for benchmark in table.benchmarks:
                if benchmark == "navsim_v2":  # scores what navsim_v1 has planned
                    wanted[row.plan, "navsim_v1"] = None
                wanted[row.plan, benchmark] = None
    return list(wanted)


def _arms(evaluations: Iterable[tuple[str, Benchmark]]) -> list[str]:
    return with_parents(arm for plan, _ in evaluations for arm in PLANS[plan].needs)


Key = tuple[str, str, int]
"""What is done, with which arm or plan, for which seed."""


@dataclass(frozen=True)
class Step:
    """Work that waits for other steps."""

    work: Callable[[], None]
    after: tuple[Key, ...] = ()


def run_steps(steps: Mapping[Key, Step], jobs: int) -> None:
    """Does all steps, `jobs` at a time, each when what it waits for is done; the first failure ends all."""
    waiting, done, running = dict(steps), set[Key](), dict[Future[None], Key]()
    with ThreadPoolExecutor(jobs) as pool, tqdm(desc="Commands", total=len(steps), unit="command") as bar:
        try:
            while waiting or running:
                for key, step in list(waiting.items()):
                    if len(running) < jobs and done.issuperset(step.after):
                        running[pool.submit(step.work)] = key
                        del waiting[key]
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    done.add(running.pop(future))
                    bar.update()
        # Whatever ends it, an interrupt or a failure, must end the other commands too; it is raised again.
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_commands()
            raise
