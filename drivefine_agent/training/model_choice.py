"""The model that a training configuration asks for, with its tokenizers and prompt format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from drivefine_agent.diffusion.decoding import DecodingOptions
from drivefine_agent.model.text_tokenizer import TextTokenizer
from drivefine_agent.planner import Planner
from drivefine_agent.training.config import ModelChoice
from drivefine_agent.training.seeds import derived_seed

if TYPE_CHECKING:
    from drivefine_agent.model.config import DriveFineConfig
    from drivefine_agent.model.drivefine_model import DriveFineModel

_REFINER_SIZES = {"n_refine", "mlp_refiner_width"}
_HEAD_SIZES = {"head_width", "head_blocks", "head_heads"}
_CHANGED_BY = {
    "backbone.refine_layers.": {"n_refine"},
    "mlp_refiner.": {"mlp_refiner_width"},
    "pose_head.": {"decoder_type"} | _HEAD_SIZES,
}
"""What makes a part of a checkpoint anew; where nothing of it changes, its weights are kept."""


def build_planner(choice: ModelChoice, seed: int, device: torch.device | str = "cpu") -> Planner:
    """A planner around a checkpoint, or around a preset with random weights that follow from the seed.

    Raises:
      ValueError: an override is no field of the model's configuration, or changes more of a checkpoint than
        the number of refinement blocks. DataError: the checkpoint is missing or damaged.
    """
    if choice.init_from is not None:
        is_new_head = choice.decoder == "diffusion_head"
        if set(choice.overrides) - _REFINER_SIZES - (_HEAD_SIZES if is_new_head else set()):
            raise ValueError(
                "a checkpoint fixes the model's shape: with model.init_from, model.overrides can name "
                f"n_refine only, got {sorted(choice.overrides)}, and the head's size with "
                "model.decoder=diffusion_head"
            )
        planner = Planner.from_pretrained(choice.init_from, DecodingOptions(), device)
        changes = dict(choice.overrides)
        if choice.decoder not in (None, planner.model.config.decoder_type):
            changes = {"n_refine": 0, "decoder_type": choice.decoder} | changes
        if changes:
            with torch.random.fork_rng():
                torch.manual_seed(derived_seed(seed, "initial weights", 0))
                planner.model = with_new_parts(planner.model, changes)
        return Planner(planner.model, planner.text_tokenizer)
    if choice.preset == "llada_8b":
        raise ValueError(
            "the 8B model is not trained from random weights: set model.init_from to what "
            "tools/import_checkpoint.py makes"
        )
    from drivefine_agent.model.drivefine_model import DriveFineModel

    tokenizer = TextTokenizer.tiny()
    config = preset_config(choice)
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, "initial weights", 0))
        model = DriveFineModel(config)
    torch.nn.Module.to(model, device)
    return Planner(model, tokenizer)


def with_new_parts(model: DriveFineModel, changes: Mapping[str, Any]) -> DriveFineModel:
    """The same vision tower, language model and tables with a new refinement expert or another decoder.

    Refinement blocks start as copies of the model's last blocks, a diffusion head at random.

    Args:
      model: stays as it is.
      changes: n_refine, mlp_refiner_width, decoder_type, or the head's size in `DriveFineConfig`.
    """
    from drivefine_agent.model.config import DriveFineConfig
    from drivefine_agent.model.drivefine_model import DriveFineModel

    made = DriveFineModel(DriveFineConfig.from_dict(model.config.to_dict() | dict(changes)))
    kept, new = model.state_dict(), made.state_dict()
    anew = tuple(part for part, fields in _CHANGED_BY.items() if fields & set(changes))
    made.load_state_dict({n: new[n] if n.startswith(anew) else kept[n] for n in new})
    if "n_refine" in changes:
        made.backbone.copy_generation_to_refinement()
    torch.nn.Module.to(made, device=model.device, dtype=model.dtype)
    return made.eval()


def preset_config(choice: ModelChoice) -> DriveFineConfig:
    """The shape of a preset with the small tokenizer's vocabulary, without weights.

    Raises:
      ValueError: unknown preset, or an override is no field of the model's configuration.
    """
    from drivefine_agent.model.config import DriveFineConfig

    presets = {"tiny": DriveFineConfig.tiny, "debug": DriveFineConfig.debug}
    if choice.preset not in presets:
        raise ValueError(f"model.preset must be one of {sorted(presets)}, got {choice.preset!r}")
    preset = presets[choice.preset]
    unknown = sorted(set(choice.overrides) - set(preset().to_dict()))
    if unknown:
        raise ValueError(f"model.overrides must name fields of DriveFineConfig, got {unknown}")
    overrides = dict(choice.overrides)
    if choice.decoder not in (None, "masked"):
        overrides |= {"decoder_type": choice.decoder, "n_refine": 0}
    config = preset(**overrides)
    config.text_config.vocab_size = max(config.text_config.vocab_size, len(TextTokenizer.tiny()))
    return config
