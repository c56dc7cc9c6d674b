"""LLaDA, LaViDa and SigLIP checkpoints -> a DriveFine checkpoint, and back.

First a plan in which every tensor on either side has its place or a reason for having none, then the writing,
shard by shard and in pieces, so that memory does not grow with the model. Nothing is written if the plan does
not come out.

What is ours alone starts from what is there: the refinement blocks are copies of the last blocks, and the
action rows lie ordinally around the rows of digits, dot and minus (`initialisation.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.errors import DataError
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.model.foreign_config import config_problems
from drivefine_agent.model.initialisation import ordinal_rows
from drivefine_agent.model.tensor_files import (
    INDEX_NAME,
    PlannedTensor,
    StoredTensor,
    index_text,
    is_written,
    list_tensors,
    plan_shards,
    read_pieces,
    write_tensors,
)
from drivefine_agent.model.weights import VOCABULARY_TABLES, our_name, reason_unused, their_name

RECORD_NAME = "import.json"
_ACTION_TABLES = {
    "embeddings.action_embed.weight": "embeddings.embed_tokens.weight",
    "heads.action_head.weight": "heads.lm_head.weight",
}
_REFINE = "backbone.refine_layers."
_SPREAD_PIECE_BYTES = 16 * 2**20  # times four while it is summed in float64


@dataclass(frozen=True)
class ImportPlan:
    """Where every tensor of the new checkpoint comes from, and what becomes of every tensor that is there."""

    config: DriveFineConfig
    shapes: dict[str, tuple[int, ...]]
    """Ours, all of them."""
    sources: dict[str, StoredTensor]
    """By our name, what is copied; refinement blocks have the sources of the last blocks."""
    new: tuple[str, ...]
    """Ours that are not copied but started here: action rows, and the projector where that was allowed."""
    unused: dict[str, StoredTensor]
    """By name and reason, what is left out."""

    @property
    def num_read(self) -> int:
        """Tensors of the sources that have a place."""
        return len({(tensor.file, tensor.name) for tensor in self.sources.values()})


def plan_import(config: DriveFineConfig, folders: Sequence[Path], new_projector: bool = False) -> ImportPlan:
    """Gives every tensor its place; reads headers only.

    Args:
      config: of the model that is to come out.
      folders: checkpoints (folders or tensor files) that together hold everything.
      new_projector: whether a projector and newline that no checkpoint has start at random.

    Raises:
      DataError: a tensor is missing, unexpected, there twice or of the wrong shape, or a config.json
        contradicts ours; all of them are named.
      ValueError: the configuration has parts that no checkpoint can fill.
    """
    if config.action_rows != "free":
        raise ValueError(f"only action_rows='free' can be added to a vocabulary, got {config.action_rows!r}")
    shapes = model_shapes(config)
    problems = [line for folder in folders for line in config_problems(config, folder)]
    copied: dict[str, StoredTensor] = {}
    unused: dict[str, StoredTensor] = {}
    for tensor in (tensor for folder in folders for tensor in list_tensors(folder)):
        name = our_name(tensor.name)
        if name is None or name not in shapes:
            reason = reason_unused(tensor.name, config.vision_config.num_hidden_layers)
            if reason is None:
                problems.append(f"unexpected: {tensor.name} in {tensor.file}")
            else:
                unused[f"{tensor.name} ({reason})"] = tensor
        elif name in copied:
            problems.append(f"twice: {tensor.name} in {tensor.file} and in {copied[name].file}")
        else:
            copied[name] = tensor
            if not _fits(tensor, name, shapes[name], config):
                problems.append(
                    f"wrong shape: {tensor.name} in {tensor.file} is {tensor.shape}, not {shapes[name]}"
                )
    sources, new = dict(copied), []
    for name in shapes:
        if name in _ACTION_TABLES or (new_projector and name.startswith("projector.") and name not in copied):
            new.append(name)
        elif name.startswith(_REFINE):
            origin = copied.get(_generation_name(name, config))
            if origin is not None:
                sources[name] = origin
        elif name not in copied:
            theirs = their_name(name)
            if theirs is None:
                raise ValueError(f"no checkpoint has {name}: only the structure of llada_8b can be imported")
            problems.append(f"missing: {theirs} ({name}) in {', '.join(map(str, folders))}")
    rows = {name: copied[name].shape[0] for name in VOCABULARY_TABLES if name in copied}
    if len(set(rows.values())) > 1:
        problems.append(f"embeddings and head must have equally many rows, got {rows}")
    if problems:
        raise DataError(_refusal(problems))
    return ImportPlan(config, shapes, sources, tuple(new), unused)


def model_shapes(config: DriveFineConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint; takes no memory."""
    with torch.device("meta"):
        model = DriveFineModel(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def write_import(
    plan: ImportPlan,
    output: Path,
    dtype: torch.dtype,
    reference_ids: list[int],
    seed: int = 0,
    max_shard_bytes: int = 2 * 10**9,
    extra_files: Mapping[str, bytes] | None = None,
    on_written: Callable[[int], object] = lambda num_bytes: None,
) -> bool:
    """Writes weights, index and configuration; the latter last, so that half a checkpoint cannot be loaded.

    Called again after a stop, it keeps the shards that are complete.

    Args:
      plan: from `plan_import`.
      output: folder; new, empty, or holding a part of the same import.
      dtype: of the weights: bfloat16 or float32.
      reference_ids: rows of digits, dot and minus, around which the action rows start.
      seed: of everything new.
      max_shard_bytes: size of a file.
      extra_files: by name, what else belongs into the folder, such as the tokenizer.
      on_written: told the bytes that came to be.

    Returns:
      False if the folder already held all of it.

    Raises:
      DataError: the folder holds something else, the disk is full, or a weight is not finite.
    """
    shards = plan_shards([PlannedTensor(n, s, dtype) for n, s in plan.shapes.items()], max_shard_bytes)
    record = _record(plan, dtype, reference_ids, seed, max_shard_bytes)
    if _claim(output, record, [*shards, INDEX_NAME]):
        return False
    _check_room(output, shards)
    for shard, tensors in shards.items():
        if is_written(output / shard, tensors):
            on_written(sum(tensor.num_bytes for tensor in tensors))
            continue
        write_tensors(
            output / shard,
            tensors,
            lambda name: _pieces(plan, name, dtype, reference_ids, seed),
            on_written,
        )
    if len(shards) > 1:
        write_bytes(output / INDEX_NAME, index_text(shards).encode())
    for name, content in (extra_files or {}).items():
        write_bytes(output / name, content)
    stated = {"architectures": [DriveFineModel.__name__], "dtype": record["dtype"]}
    write_bytes(output / "config.json", json.dumps(record["config"] | stated, indent=2).encode())
    write_bytes(output / RECORD_NAME, json.dumps(record | {"complete": True}, indent=1).encode())
    return True


def plan_export(folder: Path, layout: str, vocab_rows: int | None = None) -> dict[str, StoredTensor]:
    """What of a DriveFine checkpoint goes back under which name of LLaDA's (`llada`) or LaViDa's (`lavida`).

    Args:
      folder: a DriveFine checkpoint.
      layout: `llada`, the language model with the generation expert's blocks, or `lavida`, also the tower,
        the projector and the newline.
      vocab_rows: rows of embeddings and head; None: all. LaViDa's own files may have 126,349.

    Raises:
      DataError: the folder holds no such checkpoint.
    """
    exported = {}
    for tensor in list_tensors(folder):
        theirs = their_name(tensor.name)
        if theirs is None or (layout == "llada" and not theirs.startswith("model.transformer.")):
            continue
        rows = tensor.shape[0] if tensor.shape else 0
        if vocab_rows is not None and tensor.name in VOCABULARY_TABLES:
            if not 0 < vocab_rows <= rows:
                raise DataError(
                    f"vocab_rows must be 1 to the {rows} that {tensor.name} has in {tensor.file}, got "
                    f"{vocab_rows}; choose another number"
                )
            rows = vocab_rows
        exported[theirs] = StoredTensor(tensor.name, (rows, *tensor.shape[1:]), tensor.dtype, tensor.file)
    for needed in ("model.transformer.wte.weight", "model.transformer.ff_out.weight"):
        if needed not in exported:
            raise DataError(
                f"a DriveFine checkpoint needs {our_name(needed)}, got none in {folder}: choose another "
                "folder"
            )
    return exported


def write_export(
    exported: dict[str, StoredTensor],
    output: Path,
    max_shard_bytes: int = 5 * 10**9,
    on_written: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Writes what `plan_export` found, bit by bit, as safetensors shards with an index.

    Raises:
      DataError: the disk is full, or the folder is not empty.
    """
    if output.is_dir() and any(output.iterdir()):
        raise DataError(f"{output} is not empty: choose a new folder")
    output.mkdir(parents=True, exist_ok=True)
    planned = [PlannedTensor(theirs, t.shape, t.dtype) for theirs, t in sorted(exported.items())]
    shards = plan_shards(planned, max_shard_bytes)
    _check_room(output, shards)
    for shard, tensors in shards.items():
        write_tensors(output / shard, tensors, lambda name: read_pieces(exported[name]), on_written)
    write_bytes(output / INDEX_NAME, index_text(shards).encode())


# --------------------------------------------------------------------------------------------- the plan


def _generation_name(refine_name: str, config: DriveFineConfig) -> str:
    """The block of which a refinement block starts as a copy."""
    number, rest = refine_name.removeprefix(_REFINE).split(".", 1)
    return f"backbone.layers.{config.num_shared_blocks + int(number)}.{rest}"


def _fits(tensor: StoredTensor, name: str, shape: tuple[int, ...], config: DriveFineConfig) -> bool:
    """Vocabulary tables may lack rows at the end: LaViDa's loader cuts LLaDA's 115 unused ones off."""
    if name in VOCABULARY_TABLES and tensor.shape[1:] == shape[1:]:
        return config.mask_token_id < tensor.shape[0] <= shape[0]
    return tensor.shape == shape


def _refusal(problems: list[str]) -> str:
    return (
        f"a checkpoint must fit the model's config.json, got {len(problems)} problems; choose another "
        "configuration or checkpoint:\n  " + "\n  ".join(problems)
    )


# ------------------------------------------------------------------------------------------- the content


def _pieces(
    plan: ImportPlan, name: str, dtype: torch.dtype, reference_ids: list[int], seed: int
) -> Iterator[Tensor]:
    """A tensor of ours, in consecutive pieces."""
    generator = torch.Generator().manual_seed(_seed_of(seed, name))
    if name in _ACTION_TABLES:
        mean, std = _spread(plan.sources[_ACTION_TABLES[name]], reference_ids)
        std = plan.config.action_embedding_std or std
        yield ordinal_rows(plan.config.action_spec, mean, std, generator).to(dtype)
        return
    shape = plan.shapes[name]
    if name not in plan.sources:
        std = 0.0 if name.endswith(".bias") else plan.config.text_config.initializer_range
        yield (torch.randn(shape, generator=generator) * std).to(dtype)
        return
    source = plan.sources[name]
    for piece in read_pieces(source):
        low, high = piece.aminmax()  # NaN if there is one; many times faster than isfinite
        if not (low.isfinite() and high.isfinite()):
            raise DataError(
                f"weights must be finite, but {source.name} in {source.file} is not: fetch the file again"
            )
        yield piece.to(dtype)
    if source.shape != shape:  # a vocabulary table whose unused rows were cut off
        yield torch.zeros(shape[0] - source.shape[0], *shape[1:], dtype=dtype)


def _spread(table: StoredTensor, reference_ids: list[int]) -> tuple[Tensor, float]:
    """Mean (D,) of some rows, and the standard deviation of all values, of a table read in pieces."""
    total = squares = 0.0
    count = start = 0
    references = []
    for piece in read_pieces(table, _SPREAD_PIECE_BYTES):
        wide = piece.double()
        references += [wide[i - start].clone() for i in reference_ids if start <= i < start + len(wide)]
        total += wide.sum().item()
        squares += wide.square_().sum().item()
        count, start = count + wide.numel(), start + len(wide)
    return torch.stack(references).mean(dim=0), math.sqrt(squares / count - (total / count) ** 2)


def _seed_of(seed: int, name: str) -> int:
    """A seed of its own for each tensor, so that none depends on which were written before."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1


# ------------------------------------------------------------------------------------------ the folder


def _record(
    plan: ImportPlan, dtype: torch.dtype, reference_ids: list[int], seed: int, max_shard_bytes: int
) -> dict[str, Any]:
    """Of what an import is made: equal records give equal files."""
    used = [*plan.sources.values(), *plan.unused.values()]
    files = sorted({tensor.file for tensor in used})
    rounded = sorted(
        {f"{t.dtype}".removeprefix("torch.") for t in plan.sources.values() if _is_rounded(t, dtype)}
    )
    return {
        "files": {
            str(file.resolve()): {"bytes": file.stat().st_size, "modified_ns": file.stat().st_mtime_ns}
            for file in files
        },
        "config": json.loads(plan.config.to_json_string()),
        "dtype": f"{dtype}".removeprefix("torch."),
        "rounded_from": rounded,
        "vocabulary_rows": plan.sources[VOCABULARY_TABLES[0]].shape[0],
        "reference_ids": reference_ids,
        "seed": seed,
        "max_shard_bytes": max_shard_bytes,
        "copied": {name: tensor.name for name, tensor in plan.sources.items()},
        "new": list(plan.new),
        "unused": sorted(plan.unused),
    }


def _is_rounded(tensor: StoredTensor, dtype: torch.dtype) -> bool:
    """Whether a type holds values that the other does not."""
    return torch.promote_types(tensor.dtype, dtype) != dtype


def _claim(output: Path, record: dict[str, Any], names: list[str]) -> bool:
    """Makes the folder this import's own; True if it is already complete.

    Raises:
      DataError: it belongs to something else.
    """
    file = output / RECORD_NAME
    if not file.is_file():
        if output.is_dir() and any((output / name).exists() for name in [*names, "config.json"]):
            raise DataError(f"{output} already holds a checkpoint: choose a new folder")
        write_bytes(file, json.dumps(record | {"complete": False}, indent=1).encode())
        return False
    found = read_json_object(file)
    complete = found.pop("complete", False)
    if found != record:
        differing = sorted(key for key in record if found.get(key) != record[key])
        raise DataError(
            f"{output} belongs to an import with other {', '.join(differing)}: choose a new folder"
        )
    return bool(complete)


def _check_room(output: Path, shards: dict[str, list[PlannedTensor]]) -> None:
    needed = sum(
        sum(tensor.num_bytes for tensor in tensors)
        for shard, tensors in shards.items()
        if not is_written(output / shard, tensors)
    )
    free = shutil.disk_usage(output).free
    if needed > free:
        raise DataError(
            f"{output} needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there: make room"
        )
