"""Foreign checkpoints: which of their tensors is which of ours, and loading them without silent gaps.

LLaDA-8B's 291 tensors map one to one. A trap in their names: `ff_out` inside a block is the down projection,
at the top level it is the output head; `ff_proj` is the gated branch. A LaViDa checkpoint adds the vision
tower, the projector and the newline vector, each under `model.`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from drivefine_agent.errors import DataError
from drivefine_agent.model.drivefine_model import DriveFineModel

_LLADA_PREFIX = "model.transformer."
_LLADA_TOP = {
    "wte.weight": "embeddings.embed_tokens.weight",
    "ln_f.weight": "backbone.norm.weight",
    "ff_out.weight": "heads.lm_head.weight",
}
_LLADA_BLOCK = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_LAVIDA_PREFIXES = {
    "model.vision_tower.vision_tower.vision_model.": "vision.tower.",
    "model.mm_projector.": "projector.layers.",
}
_LAVIDA_NEWLINE = "model.image_newline"

OURS_ALONE = (
    "embeddings.action_embed.",
    "heads.action_head.",
    "backbone.refine_layers.",
    "projector.positions",
    "embeddings.context_positions",
    "embeddings.answer_positions",
)
"""Parameters that no foreign checkpoint has."""


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint's tensors."""

    loaded: tuple[str, ...]
    """Our names, filled from the checkpoint."""
    missing: tuple[str, ...]
    """Our names that the checkpoint could have had but has not (LLaDA has no vision); left as they were."""


def llada_name(name: str) -> str | None:
    """Our name of a LLaDA or LaViDa tensor, or None if it is not one."""
    if name == _LAVIDA_NEWLINE:
        return "projector.newline"
    for theirs, ours in _LAVIDA_PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    if not name.startswith(_LLADA_PREFIX):
        return None
    rest = name.removeprefix(_LLADA_PREFIX)
    if rest in _LLADA_TOP:
        return _LLADA_TOP[rest]
    match = re.fullmatch(r"blocks\.(\d+)\.(\w+)\.weight", rest)
    if match is None or match[2] not in _LLADA_BLOCK:
        return None
    return f"backbone.layers.{match[1]}.{_LLADA_BLOCK[match[2]]}.weight"


def load_llada(model: DriveFineModel, folder: str | Path, digit_ids: list[int] | None = None) -> LoadReport:
    """Fills a model from a LLaDA or LaViDa checkpoint, then starts what is new from it.

    The refinement blocks become copies of the last blocks, and the action rows are initialised ordinally
    around the rows of `digit_ids`. Embedding and head may have fewer rows than the model's (LaViDa cuts
    unused ones): the rest keep their values.

    Args:
      model: of the checkpoint's sizes.
      folder: with `model.safetensors` or its shards and index.
      digit_ids: base rows of digits, dot and minus; None: the mean of all rows.

    Raises:
      DataError: if a file is missing, or a tensor is unknown, of the wrong shape, or one of the language
        model's is absent.
    """
    ours = dict(model.named_parameters())
    loaded = []
    for file, name, tensor in _tensors(Path(folder)):
        target_name = llada_name(name)
        if target_name is None or target_name not in ours:
            raise DataError(
                f"every tensor of a checkpoint must have a place in the model, got {name!r} in {file}: "
                "is this a LLaDA or LaViDa checkpoint, and the model as deep as it?"
            )
        _copy(ours[target_name], tensor, target_name, file)
        loaded.append(target_name)
    expected = {n for n in ours if not n.startswith(OURS_ALONE)}
    missing = sorted(expected - set(loaded))
    language = [n for n in missing if n.startswith(("embeddings.", "backbone.", "heads."))]
    if language:
        raise DataError(
            f"the checkpoint in {folder} lacks {len(language)} tensors of the language model: {language[:5]}"
        )
    model.backbone.copy_generation_to_refinement()
    model.initialise_action_rows(digit_ids)
    return LoadReport(tuple(sorted(loaded)), tuple(missing))


def _copy(parameter: Tensor, tensor: Tensor, name: str, file: Path) -> None:
    is_vocabulary = name in ("embeddings.embed_tokens.weight", "heads.lm_head.weight")
    if is_vocabulary and tensor.shape[1:] == parameter.shape[1:] and len(tensor) <= len(parameter):
        parameter = parameter[: len(tensor)]
    if tensor.shape != parameter.shape:
        raise DataError(
            f"{name} must have shape {tuple(parameter.shape)}, got {tuple(tensor.shape)} in {file}"
        )
    with torch.no_grad():
        parameter.copy_(tensor)


def _tensors(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """File, name and value of every tensor of a checkpoint."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        shards = ["model.safetensors"]
    for shard in shards:
        file = folder / shard
        if not file.is_file():
            raise DataError(f"no {shard} in {folder}: a checkpoint needs model.safetensors or all its shards")
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():
                yield file, name, tensors.get_tensor(name)
