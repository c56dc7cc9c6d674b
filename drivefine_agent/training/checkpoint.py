"""Training state on disk: safetensors and JSON only, written atomically, restored bit for bit.

    <run>/checkpoints/1_generator_0000120/
        weights.safetensors     every tensor of the model's state
        optimizer.safetensors   the optimizer's moments and step counters, `<parameter name>/<moment>`
        average.safetensors     the running average of the weights
        state.json              phase, step, and what else the script wants to keep
        provenance.json         what it learned from, see `drivefine_agent/provenance.py`

A checkpoint is complete when its folder has its final name; the newest is the last by name. Random numbers
need no entry: every draw of training comes from a generator seeded by (seed, purpose, step), see `seeds.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from drivefine_agent.data.atomic import atomic_folder, remove_folder, remove_leftovers
from drivefine_agent.data.folder_lock import check_locks
from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.errors import DataError
from drivefine_agent.provenance import write_card
from drivefine_agent.training.optimization import WeightAverage


def save_checkpoint(
    folder: Path,
    name: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    state: Mapping[str, Any],
    keep: int = 1,
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Writes checkpoint `name` below `folder` and removes all but the `keep` newest ones.

    Args:
      folder: the run's checkpoint folder.
      name: later checkpoints have later names, in alphabetical order.
      model: its full state is stored (shared tensors once per name).
      optimizer: built by `build_optimizer`.
      average: running average of the weights.
      state: JSON values.
      keep: how many checkpoints remain.
      card: what the model learned from.

    Returns:
      The checkpoint's folder.
    """
    target = folder / name
    weights = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    averages = {k: v.clone().contiguous() for k, v in average.state().items()}
    record = {**state, "average_updates": average.num_updates}
    check_locks(target)
    with atomic_folder(target) as part:
        save_file(weights, part / "weights.safetensors")
        save_file(_optimizer_tensors(optimizer), part / "optimizer.safetensors")
        save_file(averages, part / "average.safetensors")
        (part / "state.json").write_text(json.dumps(record, indent=2) + "\n")
        if card is not None:
            write_card(part, card)
    remove_older(folder, keep)
    return target


def remove_older(folder: Path, keep: int = 1) -> None:
    """Removes all checkpoints but the newest `keep`, and what a killed run did not come to remove."""
    for old in checkpoints(folder)[:-keep]:
        remove_folder(old)
    remove_leftovers(folder)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, oldest first."""
    return sorted(path.parent for path in folder.glob("[!.]*/state.json"))


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint: read it first, to know which phase's model and optimizer to build."""
    try:
        return read_json_object(checkpoint / "state.json")
    except DataError as error:
        raise DataError(
            f"cannot read checkpoint {checkpoint}: {error}. Delete the folder to resume earlier"
        ) from error


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Restores the model alone, in place.

    Raises:
      DataError: the file is missing or damaged, or does not belong to this model.
    """
    try:
        model.load_state_dict(load_file(checkpoint / "weights.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DataError(_misfit(checkpoint, error)) from error


def load_checkpoint(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> None:
    """Restores model, optimizer and weight average in place.

    Raises:
      DataError: a file is missing or damaged, or does not belong to this model and optimizer.
    """
    load_weights(checkpoint, model)
    try:
        _load_optimizer_tensors(optimizer, load_file(checkpoint / "optimizer.safetensors"))
        average.load(load_file(checkpoint / "average.safetensors"), load_state(checkpoint)["average_updates"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(_misfit(checkpoint, error)) from error


def _misfit(checkpoint: Path, error: Exception) -> str:
    return (
        f"checkpoint {checkpoint} is damaged or not of this model and configuration: {error}. "
        "Resume with the configuration it was written with, or start in a new output_dir"
    )


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{moment}"] = torch.as_tensor(value).detach().clone().contiguous()
    return tensors


def _load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, moment = key.rpartition("/")
        by_parameter.setdefault(name, {})[moment] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in by_parameter:
                moments = by_parameter.pop(name)
                optimizer.state[parameter] = {
                    moment: value if moment == "step" else value.to(parameter.device)
                    for moment, value in moments.items()
                }
    if by_parameter:
        raise ValueError(f"saved names must be those of optimizer, got others: {sorted(by_parameter)[:5]}")
