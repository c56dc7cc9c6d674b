"""Checkpoints of a reinforcement run: a model that can be used as it is, where it comes from, how to go on.

    <run>/checkpoints/0000120/
        model/                  what `Planner.from_pretrained` loads
        moments-*.safetensors   the optimizer's state, see `state_files.py`
        provenance.json         step, code, data, rewards, seeds, configuration, parent

A checkpoint is complete when its folder has its final name: it is written under another one, flushed to the
disk and renamed, and the one before is removed only after that. Random numbers need no entry, see
`drivefine_agent/training/seeds.py`. With several machines, the run's folder must be on a disk they share.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from drivefine_agent.data.atomic import publish, remove_folder, remove_leftovers, temporary_name
from drivefine_agent.data.folder_lock import check_locks
from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.errors import DataError
from drivefine_agent.model.weight_files import weights_hash
from drivefine_agent.planner import Planner
from drivefine_agent.provenance import CARD
from rl.engine import Engine

FREE_KEYS = (
    "output_dir",
    "experiment_name",
    "tile_cache_path",
    "allow_test_split",
    "i_train_on_test_tokens_of",
    "engine",
    "rollout.save_scored",
    "reward.backend",
    "reward.num_workers",
    "reward.timeout_s",
    "reward.start_timeout_s",
    "reward.max_failures_in_a_row",
    "run.log_every",
    "run.checkpoint_every",
    "run.num_threads",
    "run.deterministic",
    "run.visual_cache_gb",
)
"""Keys, or groups of keys, that may change when a run goes on: they do not touch what is learned."""


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint comes from; all of it is written into every checkpoint of a run."""

    configuration: Mapping[str, Any]
    """Of the run, as nested JSON values."""
    data: Mapping[str, Any]
    """What the run learns from: a `TrainingData` as JSON values."""
    parent: Mapping[str, Any]
    """The model that the run started from: `provenance.parent_record` and the hash of its weights."""
    reward_weights: Mapping[str, float]
    seeds: Mapping[str, int]
    code: Mapping[str, Any] = field(default_factory=lambda: code_record())
    """Versions, and the commit if there is one."""


@dataclass(frozen=True)
class Resumed:
    """What a run goes on from."""

    folder: Path
    step: int
    """Finished optimizer steps."""


def save_run_state(folder: Path, step: int, engine: Engine, planner: Planner, provenance: Provenance) -> Path:
    """Writes the checkpoint of a step and then removes older ones; every process must call this.

    Args:
      folder: the run's checkpoint folder.
      step: finished optimizer steps.
      engine: with the weights.
      planner: configuration and text tokenizer of the model.
      provenance: of the run.

    Returns:
      The checkpoint's folder.

    Raises:
      DataError: it cannot be written, such as on a full disk; the last good checkpoint is then still there.
        Raised on the main process, and as `ProcessLostError` on the others.
    """
    target = folder / f"{step:07d}"
    card = asdict(provenance) | {
        "step": step,
        "backend": engine.config.backend,
        "num_processes": engine.world_size,
    }
    if engine.agree((target / CARD).is_file()):
        return target  # written before the run was stopped; the same steps give the same bits
    part = folder / engine.agree(temporary_name(target).name)
    try:
        weights = engine.gather_weights()
        engine.raise_together(_write_model(part, planner, weights, card) if engine.is_main else None)
        del weights
        engine.save_state(part)
        engine.raise_together(_publish(part, target) if engine.is_main else None)
    except DataError as error:
        raise DataError(
            f"{error}. {_last_good(folder)}; make room and start the same command again to go on from there"
        ) from error
    finally:
        if engine.is_main:
            shutil.rmtree(part, ignore_errors=True)
    return target


def find_run_state(folder: Path, engine: Engine, configuration: Mapping[str, Any]) -> Resumed | None:
    """The newest checkpoint of a run, the same for all processes; None: there is none, start afresh.

    Args:
      folder: the run's checkpoint folder.
      engine: of the run.
      configuration: of the run that wants to go on.

    Raises:
      DataError: the checkpoint is of another configuration, or a process does not see it.
    """
    newest = [path.name for path in run_states(folder)[-1:]] if engine.is_main else None
    agreed = engine.agree(newest)
    if not agreed:
        return None
    checkpoint = folder / agreed[0]
    error: DataError | None = None
    step = 0
    try:
        card = read_card(checkpoint)
        step = int(card["step"])
        check_same_configuration(checkpoint, card["configuration"], configuration)
    except DataError as problem:
        error = problem
    engine.raise_together(error)
    return Resumed(checkpoint, step)


def resume_run_state(folder: Path, engine: Engine, configuration: Mapping[str, Any]) -> Resumed | None:
    """Finds the newest checkpoint and gives its weights and moments to the engine; see `find_run_state`.

    Older ones are removed: a run leaves one that is killed between writing one and removing the one before.
    """
    found = find_run_state(folder, engine, configuration)
    if found is not None:
        engine.load_state(found.folder)
        engine.raise_together(_remove_others(found.folder) if engine.is_main else None)
    return found


def run_states(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, oldest first."""
    return sorted(path.parent for path in folder.glob(f"[!.]*/{CARD}"))


def read_card(checkpoint: Path) -> dict[str, Any]:
    """The provenance card of a checkpoint.

    Raises:
      DataError: it is missing or damaged.
    """
    try:
        return read_json_object(checkpoint / CARD)
    except DataError as error:
        raise DataError(
            f"cannot read {checkpoint / CARD}: {error}. With several machines the run's folder must be on a "
            "disk they share; delete a damaged checkpoint to go on from an earlier one"
        ) from error


def check_same_configuration(checkpoint: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of another configuration.

    Raises:
      DataError: names the keys that differ.
    """
    first, second = _flat(found), _flat(json.loads(json.dumps(wanted)))
    differing = sorted(
        key
        for key in first.keys() | second.keys()
        if first.get(key) != second.get(key)
        and not any(key == free or key.startswith(free + ".") for free in FREE_KEYS)
    )
    if differing:
        changes = ", ".join(f"{key}: {first.get(key)!r} -> {second.get(key)!r}" for key in differing[:5])
        raise DataError(
            f"checkpoint {checkpoint} is of another configuration ({changes}): choose another "
            "experiment_name or output_dir, or go back to the old settings"
        )


# -------------------------------------------------------------------------------------- records of the card


def code_record() -> dict[str, Any]:
    """Versions of this package and torch, and the git commit of its sources if there is one."""
    return {
        "drivefine": importlib.metadata.version("drivefine"),
        "torch": torch.__version__,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_is_clean": _git("status", "--porcelain", "--untracked-files=no") == "",
    }


def _git(*arguments: str) -> str | None:
    """Output of a git command at this file's sources; None where there is no repository or no git."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# -------------------------------------------------------------------------------------- writing


def _write_model(
    part: Path, planner: Planner, weights: Mapping[str, Tensor], card: Mapping[str, Any]
) -> DataError | None:
    """Starts a checkpoint; returns what went wrong, because the other processes still wait."""
    try:
        check_locks(part)
        remove_leftovers(part.parent)
        (part / "model").mkdir(parents=True)
        planner.model.save_pretrained(part / "model", state_dict=dict(weights))
        planner.text_tokenizer.save(part / "model")
        content = dict(card) | {"weights_sha256": weights_hash(part / "model")}
        (part / CARD).write_text(json.dumps(content, indent=1) + "\n")
    except (OSError, SafetensorError, DataError) as error:
        return DataError(f"cannot write checkpoint {part}: {error}")
    return None


def _publish(part: Path, target: Path) -> DataError | None:
    """Flushes a finished checkpoint to the disk, gives it its name, removes those before it."""
    try:
        publish(part, target)
    except OSError as error:
        return DataError(f"cannot write checkpoint {target}: {error}")
    return _remove_others(target)


def _remove_others(newest: Path) -> DataError | None:
    """Removes all complete checkpoints but the newest, and what a killed run did not come to remove."""
    remove_leftovers(newest.parent)
    for checkpoint in run_states(newest.parent):
        if checkpoint != newest:
            try:
                remove_folder(checkpoint)
            except OSError as error:
                return DataError(
                    f"only the newest checkpoint is kept, got {error} for {checkpoint}: delete it"
                )
    return None


def _last_good(folder: Path) -> str:
    kept = run_states(folder)
    return f"The last good checkpoint is {kept[-1]}" if kept else "There is no earlier checkpoint"


def _flat(configuration: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in configuration.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
