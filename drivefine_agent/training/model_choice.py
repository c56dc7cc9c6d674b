"""The model that a training configuration asks for, with its tokenizers and prompt format."""

from __future__ import annotations

import torch

from drivefine_agent.diffusion.decoding import DecodingOptions
from drivefine_agent.model.config import DecoderName, DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.model.text_tokenizer import TextTokenizer
from drivefine_agent.planner import Planner
from drivefine_agent.training.config import ModelChoice
from drivefine_agent.training.seeds import derived_seed


def build_planner(choice: ModelChoice, seed: int, device: torch.device | str = "cpu") -> Planner:
    """A planner around a checkpoint, or around a preset with random weights that follow from the seed.

    Raises:
      ValueError: an override is no field of the model's configuration, or both a checkpoint and overrides are
        given. DataError: the checkpoint is missing or damaged.
    """
    if choice.init_from is not None:
        if choice.overrides:
            raise ValueError(
                f"a checkpoint fixes the model's shape: model.overrides must be empty with model.init_from, "
                f"got {sorted(choice.overrides)}"
            )
        planner = Planner.from_pretrained(choice.init_from, DecodingOptions(), device)
        if choice.decoder in (None, planner.model.config.decoder_type):
            return planner
        with torch.random.fork_rng():
            torch.manual_seed(derived_seed(seed, "initial weights", 0))
            model = with_decoder(planner.model, choice.decoder)
        torch.nn.Module.to(model, device)
        return Planner(model, planner.text_tokenizer)
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


def with_decoder(model: DriveFineModel, decoder: DecoderName) -> DriveFineModel:
    """The same vision tower, language model and tables under another decoder.

    A refinement expert stays behind; a diffusion head is new, and a masked model gets no refinement expert.
    """
    settings = model.config.to_dict() | {"decoder_type": decoder, "n_refine": 0}
    made = DriveFineModel(DriveFineConfig.from_dict(settings))
    torch.nn.Module.to(made, model.dtype)
    kept, wanted = model.state_dict(), made.state_dict()
    with torch.no_grad():
        for name, weight in wanted.items():
            if not name.startswith("pose_head."):
                weight.copy_(kept[name])
    return made


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
    overrides = dict(choice.overrides)
    if choice.decoder not in (None, "masked"):
        overrides |= {"decoder_type": choice.decoder, "n_refine": 0}
    config = preset(**overrides)
    config.text_config.vocab_size = max(config.text_config.vocab_size, len(TextTokenizer.tiny()))
    return config
