"""The commands that the crash harness hits, at sizes of seconds, and what of their output may differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq

OUT = "out"
"""Every command's output, below the folder it runs in; relative, so that no path differs between two runs."""

HITS = (
    "kill_group",
    "kill_main",
    "terminate",
    "kill_worker",
    "stop_worker",
    "disk_full",
    "renamed_away",
)

Normalise = Callable[[bytes], bytes]


@dataclass(frozen=True)
class MayDiffer:
    """Files whose bytes may differ from those of an undisturbed run."""

    pattern: str
    """Of names below OUT, as `Path.match` has them."""
    reason: str
    normalise: Normalise | None = None
    """What is compared instead; None: nothing, the file need not even be there."""


@dataclass(frozen=True)
class Command:
    """One long-running command."""

    name: str
    arguments: Callable[[Path], list[str]]
    """Script and arguments, given the folder of the prepared data."""
    hits: tuple[str, ...]
    """Of HITS."""
    exceptions: tuple[MayDiffer, ...] = ()
    needs: tuple[str, ...] = ()
    """Commands whose undisturbed output this one reads."""
    environment: Mapping[str, str] = field(default_factory=dict)


def without(*keys: str) -> Normalise:
    """JSON without some keys, at any depth."""

    def drop(value: object) -> object:
        if isinstance(value, dict):
            return {k: drop(v) for k, v in value.items() if k not in keys}
        return [drop(v) for v in value] if isinstance(value, list) else value

    return lambda content: json.dumps(drop(json.loads(content))).encode()


def last_of_each_step(content: bytes) -> bytes:
    """Lines of metrics.jsonl in order, the last one of each step, without times."""
    lines: dict[tuple[object, ...], dict[str, object]] = {}
    for line in content.decode().splitlines():
        values = json.loads(line)
        key = (values.get("group"), values.get("phase"), values.get("step"))
        lines[key] = {k: v for k, v in values.items() if "time" not in k and "seconds" not in k}
    return json.dumps(sorted(lines.values(), key=str)).encode()


def outcome_lines(content: bytes) -> bytes:
    """Lines of outcomes or plans in one order, each once, without how long planning took."""
    lines = {without("planning_ms")(line) for line in content.splitlines()}
    return b"\n".join(sorted(lines))


def without_minutes(content: bytes) -> bytes:
    """Lines that say no duration."""
    return b"\n".join(line for line in content.splitlines() if b" minutes" not in line)


def scores_without_minutes(content: bytes) -> bytes:
    """All cells of a table's scores by scene, and the settings they belong to."""
    lines = pq.read_table(BytesIO(content))
    settings = json.loads(lines.schema.metadata[b"drivefine"])["settings"]
    return json.dumps([settings, lines.to_pylist()]).encode()


_LOCK = MayDiffer("*.lock", "names the process that holds or held it")
_TRAINING = (
    _LOCK,
    MayDiffer("tensorboard/*", "one file for each start, named by time, host and process"),
    MayDiffer("metrics.jsonl", "a resumed run logs some steps again, and durations", last_of_each_step),
    MayDiffer(
        "provenance.json",
        "holds the time, and the state of the checkout",
        without("time", "created", "date", "host", "seconds", "git_commit"),
    ),
)
_EVALUATION = (
    _LOCK,
    MayDiffer("outcomes/*.jsonl", "grows as workers finish, and holds durations", outcome_lines),
    MayDiffer(
        "summary.json",
        "holds durations and counts of what the last start did",
        without("seconds", "planning", "num_taken_over", "num_scenes_from_cache", "num_scenes_built"),
    ),
)

_ABLATION = (
    *_TRAINING,
    MayDiffer("*.log", "what commands print, with durations"),
    MayDiffer("tiles/*", "named by the times of change of the images, which are made anew"),
    MayDiffer("outcomes/*.jsonl", "named by the times of change of all that the evaluation reads"),
    MayDiffer("command.json", "holds the duration", without("seconds")),
    MayDiffer(
        "summary.json",
        "holds durations, and the times of change of all that the evaluation reads",
        without(
            *("seconds", "planning", "num_taken_over", "num_scenes_from_cache", "num_scenes_built"),
            *("configuration_hash", "files", "prepared"),
        ),
    ),
    MayDiffer("results/*.md", "says how many minutes it took", without_minutes),
    MayDiffer("scores/*.parquet", "the same", scores_without_minutes),
)

_WITHOUT_WORKERS = tuple(hit for hit in HITS if not hit.endswith("_worker"))


def _world(shared: Path) -> list[str]:
    sizes = "num_train_logs=2 num_val_logs=1 num_test_logs=1 log_duration_s=20"
    stages = "num_two_stage_groups=1 followups_per_group=1"
    return ["tools/make_world.py", f"output={OUT}", "num_workers=2", *sizes.split(), *stages.split()]


def _data(shared: Path, split: str) -> list[str]:
    return [f"dataset_root={shared / 'make_world' / OUT}", f"train_test_split=world_{split}"]


def _cache(split: str) -> Callable[[Path], list[str]]:
    options = ["progress=false", "num_workers=2", f"metric_cache_path={OUT}"]
    return lambda shared: ["tools/build_scene_cache.py", *_data(shared, split), *options]


def _sft(shared: Path) -> list[str]:
    phases = ("perception", "generator", "refiner")
    return [
        "tools/train_sft.py",
        *_data(shared, "train"),
        f"output_dir={OUT}",
        "model.preset=debug",
        *(f"{phase}.num_epochs=1" for phase in phases),
        *(f"{phase}.batch_size=4" for phase in phases),
        "run.checkpoint_every=1",
        "run.num_threads=1",
        "max_scenes=8",
        "max_validation_scenes=2",
    ]


def _reinforcement(script: str, *options: str) -> Callable[[Path], list[str]]:
    common = (
        "max_scenes=4 run.max_steps=3 run.batch_size=2 run.micro_batch_scenes=2 run.checkpoint_every=1 "
        "run.num_threads=1 rollout.num_samples=4 rollout.num_denoising_steps=4 objective.tau=2 "
        "reward.num_workers=2 +reward.timeout_s=5"
    )
    return lambda shared: [
        f"rl/{script}.py",
        *_data(shared, "train"),
        f"metric_cache_path={shared / 'build_scene_cache' / OUT}",
        f"checkpoint_path={shared / 'train_sft' / OUT}",
        f"output_dir={OUT}",
        *common.split(),
        *options,
    ]


def _evaluate(shared: Path) -> list[str]:
    return [
        "tools/evaluate.py",
        "agent=drivefine",
        f"agent.checkpoint_path={shared / 'train_sft' / OUT}",
        *_data(shared, "test"),
        f"metric_cache_path={shared / 'build_scene_cache_test' / OUT}",
        f"output_dir={OUT}",
        "batch_size=2",
        "num_workers=2",
        "progress=false",
    ]


def _scorer(shared: Path) -> list[str]:
    sizes = (
        "max_scenes=6 max_validation_scenes=3 candidates.num_samples=2 candidates.num_spoilt=2 "
        "candidates.num_denoising_steps=2 head.num_epochs=2 head.num_candidates=8 head.batch_size=2 "
        "num_threads=1 reward.num_workers=2 +reward.timeout_s=5"
    )
    return [
        "tools/train_scorer.py",
        *_data(shared, "train"),
        f"checkpoint_path={shared / 'train_sft' / OUT}",
        f"metric_cache_path={shared / 'build_scene_cache' / OUT}",
        f"validation_metric_cache_path={shared / 'build_scene_cache_val' / OUT}",
        f"output_dir={OUT}",
        *sizes.split(),
    ]


def _ablation(shared: Path) -> list[str]:
    """Two worlds, two caches, two trainings and an evaluation, each a command of its own."""
    sft = [
        "model.preset=debug",
        *(f"{phase}.num_epochs=1" for phase in ("perception", "generator", "refiner")),
        *(f"{phase}.batch_size=4" for phase in ("perception", "generator", "refiner")),
        *("run.checkpoint_every=1", "run.num_threads=1", "max_scenes=8", "max_validation_scenes=2"),
    ]
    hybrid = (
        "max_scenes=4 run.max_steps=2 run.batch_size=2 run.micro_batch_scenes=2 run.checkpoint_every=1 "
        "run.num_threads=1 rollout.num_samples=4 rollout.num_denoising_steps=2 objective.tau=1"
    ).split()
    worlds = (
        "world.num_train_logs=2 world.num_val_logs=1 +world.log_duration_s=20 test_world.num_test_logs=1 "
        "+test_world.log_duration_s=20 +test_world.num_two_stage_groups=0"
    )
    return [
        *("tools/reproduce.py", "tables=[figure6]", "seeds=[0]", "jobs=2", f"output={OUT}"),
        *worlds.split(),
        f"recipes.sft={sft}",
        f"recipes.rl_coarse={hybrid}",
    ]


COMMANDS = {
    command.name: command
    for command in (
        Command("make_world", _world, HITS, (_LOCK,)),
        Command("build_scene_cache", _cache("train"), HITS, (_LOCK,), ("make_world",)),
        Command("train_sft", _sft, _WITHOUT_WORKERS, _TRAINING, ("make_world",)),
        Command(
            "train_grpo",
            _reinforcement("train_grpo"),
            HITS,
            _TRAINING,
            ("build_scene_cache", "train_sft"),
        ),
        Command(
            "train_hybrid",
            _reinforcement("train_hybrid", "rollout.num_refined=2"),
            HITS,
            _TRAINING,
            ("build_scene_cache", "train_sft"),
        ),
        Command(
            "train_scorer",
            _scorer,
            HITS,
            _TRAINING,
            ("build_scene_cache", "build_scene_cache_val", "train_sft"),
        ),
        Command("evaluate", _evaluate, HITS, _EVALUATION, ("build_scene_cache_test", "train_sft")),
        Command("ablation", _ablation, HITS, _ABLATION),
    )
}

PREPARATIONS = {
    command.name: command
    for command in (
        Command("build_scene_cache_val", _cache("val"), (), (), ("make_world",)),
        Command("build_scene_cache_test", _cache("test"), (), (), ("make_world",)),
    )
}
"""Run undisturbed only, for others to read."""
