"""The model that a training configuration asks for, with its tokenizers and prompt format."""

from __future__ import annotations

import torch

from drivefine_agent.diffusion.decoding import DecodingOptions
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.model.text_tokenizer import TextTokenizer
from drivefine_agent.planner import Planner
from drivefine_agent.training.config import ModelChoice
from drivefine_agent.training.seeds import derived_seed


def build_planner(choice: ModelChoice, seed: int, device: torch.device | str = "cpu") -> Planner:
    """A planner around a checkpoint, or around a preset with random weights that follow from the seed.

    Raises:
      ValueError: an override is no field of the model's configuration, or changes more of a checkpoint than
        the number of refinement blocks. DataError: the checkpoint is missing or damaged.
    """
    if choice.init_from is not None:
        if set(choice.overrides) - {"n_refine"}:
            raise ValueError(
                "a checkpoint fixes the model's shape: with model.init_from, model.overrides can name "
                f"n_refine only, got {sorted(choice.overrides)}"
            )
        planner = Planner.from_pretrained(choice.init_from, DecodingOptions(), device)
        if "n_refine" in choice.overrides:
            planner.model = with_refinement_blocks(planner.model, choice.overrides["n_refine"])
        return Planner(planner.model, planner.text_tokenizer)
    if choice.preset == "llada_8b":
        raise ValueError(
            "the 8B model is not trained from random weights: set model.init_from to what "
            "tools/import_checkpoint.py makes"
        )
    tokenizer = TextTokenizer.tiny()
    config = preset_config(choice)
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, "initial weights", 0))
        model = DriveFineModel(config)
    torch.nn.Module.to(model, device)
    return Planner(model, tokenizer)


def with_refinement_blocks(model: DriveFineModel, count: int) -> DriveFineModel:
    """The model with that many refinement blocks, new ones: copies of its last blocks, not yet trained."""
    resized = DriveFineModel(DriveFineConfig.from_dict(model.config.to_dict() | {"n_refine": count}))
    new, kept = resized.state_dict(), model.state_dict()
    is_refiner = {name: name.startswith("backbone.refine_layers.") for name in new}
    resized.load_state_dict({name: new[name] if is_refiner[name] else kept[name] for name in new})
    resized.backbone.copy_generation_to_refinement()
    torch.nn.Module.to(resized, device=model.device, dtype=model.dtype)
    return resized.eval()


def preset_config(choice: ModelChoice) -> DriveFineConfig:
    """The shape of a preset with the small tokenizer's vocabulary, without weights.

    Raises:
      ValueError: unknown preset, or an override is no field of the model's configuration.
    """
    presets = {"tiny": DriveFineConfig.tiny, "debug": DriveFineConfig.debug}
    if choice.preset not in presets:
        raise ValueError(f"only {sorted(presets)} start from random weights, got {choice.preset!r}")
    preset = presets[choice.preset]
    unknown = sorted(set(choice.overrides) - set(preset().to_dict()))
    if unknown:
        raise ValueError(f"model.overrides must name fields of DriveFineConfig, got {unknown}")
    config = preset(**choice.overrides)
    config.text_config.vocab_size = max(config.text_config.vocab_size, len(TextTokenizer.tiny()))
    return config
