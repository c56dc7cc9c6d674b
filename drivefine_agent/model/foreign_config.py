"""What a foreign checkpoint's config.json says about its model, against ours.

Shapes show neither the number of heads, nor the rotary base, nor how features are pooled; a checkpoint that
differs there would load and speak nonsense. Only keys that are in the file are compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.errors import DataError
from drivefine_agent.model.config import DriveFineConfig


def config_problems(config: DriveFineConfig, folder: Path) -> list[str]:
    """One line for each key of `folder`/config.json that our model cannot follow; none if there is no file.

    Raises:
      DataError: the file is damaged.
    """
    file = folder / "config.json"
    if not file.is_file():
        return []
    theirs = read_json_object(file)
    vision = theirs.get("vision_config", theirs if "siglip" in str(theirs.get("model_type")) else {})
    if not isinstance(vision, dict):
        raise DataError(
            f"'vision_config' must be an object, got {type(vision).__name__}: {file}; fetch it again"
        )
    pairs = [(theirs, _language(config)), (vision, _vision(config))]
    return [
        f"{key} is {found[key]!r} in {file}, our model needs {value!r}"
        for found, needed in pairs
        for key, value in needed.items()
        if key in found and not _agree(found[key], value)
    ]


def _language(config: DriveFineConfig) -> dict[str, Any]:
    """LLaDA's keys, and LaViDa's beside them."""
    text = config.text_config
    rope: Any = text.rope_parameters
    return {
        "d_model": text.hidden_size,
        "n_layers": text.num_hidden_layers,
        "n_heads": text.num_attention_heads,
        "n_kv_heads": text.num_key_value_heads,
        "mlp_hidden_size": text.intermediate_size,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": rope["rope_theta"],
        "rope": True,
        "rope_full_precision": True,
        "alibi": False,
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "attention_layer_norm": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "weight_tying": False,
        "scale_logits": False,
        "input_emb_norm": False,
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": "bilinear",
    }


def _vision(config: DriveFineConfig) -> dict[str, Any]:
    vision = config.vision_config
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size")
    return {name: getattr(vision, name) for name in (*names, "hidden_act", "layer_norm_eps")}


def _agree(found: Any, needed: Any) -> bool:
    return found is None or found == needed
