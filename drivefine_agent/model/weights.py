"""Foreign checkpoints: which of their tensors is which of ours.

LLaDA-8B's 291 tensors map one to one. A trap in their names: `ff_out` inside a block is the down projection,
at the top level it is the output head; `ff_proj` is the gated branch. A LaViDa checkpoint adds the vision
tower, the projector and the newline vector, each under `model.`. SigLIP's own checkpoints have the tower
under `vision_model.`, with a last layer, a pooling head and a text tower that we have no use for.
"""

from __future__ import annotations

import re

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
_SIGLIP_PREFIX = "vision_model."
_TOWER = "vision.tower."

VOCABULARY_TABLES = ("embeddings.embed_tokens.weight", "heads.lm_head.weight")
"""Of ours, with one row per token of the text vocabulary."""

OURS_ALONE = (
    "embeddings.action_embed.",
    "heads.action_head.",
    "backbone.refine_layers.",
    "projector.positions",
    "embeddings.context_positions",
    "embeddings.answer_positions",
    "perception.",
)
"""Parameters that no foreign checkpoint has."""


def our_name(theirs: str) -> str | None:
    """Our name of a tensor of LLaDA, LaViDa or SigLIP, or None if it is not one.

    The tower's layers and head are named whether or not our tower has them.
    """
    if theirs == _LAVIDA_NEWLINE:
        return "projector.newline"
    for prefix, ours in {**_LAVIDA_PREFIXES, _SIGLIP_PREFIX: _TOWER}.items():
        if theirs.startswith(prefix):
            return ours + theirs.removeprefix(prefix)
    if not theirs.startswith(_LLADA_PREFIX):
        return None
    rest = theirs.removeprefix(_LLADA_PREFIX)
    if rest in _LLADA_TOP:
        return _LLADA_TOP[rest]
    match = re.fullmatch(r"blocks\.(\d+)\.(\w+)\.weight", rest)
    if match is None or match[2] not in _LLADA_BLOCK:
        return None
    return f"backbone.layers.{match[1]}.{_LLADA_BLOCK[match[2]]}.weight"


def their_name(ours: str) -> str | None:
    """The name in a LLaDA or LaViDa checkpoint of a tensor of ours, or None if they have no place for it."""
    if ours == "projector.newline":
        return _LAVIDA_NEWLINE
    for theirs, prefix in _LAVIDA_PREFIXES.items():
        if ours.startswith(prefix):
            return theirs + ours.removeprefix(prefix)
    for top, name in _LLADA_TOP.items():
        if ours == name:
            return _LLADA_PREFIX + top
    match = re.fullmatch(r"backbone\.layers\.(\d+)\.([\w.]+)\.weight", ours)
    parts = {name: part for part, name in _LLADA_BLOCK.items()}
    if match is None or match[2] not in parts:
        return None
    return f"{_LLADA_PREFIX}blocks.{match[1]}.{parts[match[2]]}.weight"


def reason_unused(theirs: str, num_tower_layers: int) -> str | None:
    """Why a tensor that SigLIP's checkpoints are known to have is left out, or None if it is not known.

    Args:
      theirs: name in their checkpoint.
      num_tower_layers: of our tower.
    """
    if theirs.startswith("text_model."):
        return "SigLIP's text tower"
    if theirs in ("logit_scale", "logit_bias"):
        return "SigLIP's contrastive loss"
    name = our_name(theirs) or ""
    if name.startswith(_TOWER + "head."):
        return "SigLIP's pooling head"
    if name == _TOWER + "embeddings.position_ids":
        return "a constant"
    layer = re.match(re.escape(_TOWER) + r"encoder\.layers\.(\d+)\.", name)
    if layer is not None and int(layer[1]) >= num_tower_layers:
        return f"layers after the tower's {num_tower_layers}: the features are read before them"
    return None
