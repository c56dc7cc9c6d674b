"""Tiny models and inputs that several tests of the model side need."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from drivefine_agent.actions import MASKED
from drivefine_agent.model.choices import IMAGE_PLACEHOLDER
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel


class Inputs(NamedTuple):
    """A batch for the debug model: 3 scenes, 4 answer rows each, some slots masked."""

    tiles: Tensor
    context_ids: Tensor
    instruction_ids: Tensor
    actions: Tensor


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64, **overrides: Any) -> DriveFineModel:
    """A debug model whose weights are large enough that every path matters and whose experts differ."""
    torch.manual_seed(seed)
    model = DriveFineModel(DriveFineConfig.debug(**overrides)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vision" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_inputs(model: DriveFineModel, seed: int = 1, num_scenes: int = 3, num_rows: int = 4) -> Inputs:
    """Random tiles, prompts with the image in column 2, half-masked legal answers."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    context_ids = integers(0, 290, num_scenes, 11)
    context_ids[:, 2] = IMAGE_PLACEHOLDER
    actions = random_actions(config, (num_scenes, num_rows), generator)
    is_masked = torch.rand(actions.shape, generator=generator) < 0.5
    return Inputs(
        tiles=integers(0, 256, num_scenes, 2, 28, 28, 3).to(torch.uint8),
        context_ids=context_ids,
        instruction_ids=integers(0, 290, 5),
        actions=torch.where(is_masked, MASKED, actions),
    )


def random_actions(config: DriveFineConfig, lead: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """(*lead, 24) complete legal answers."""
    spatial = torch.randint(0, config.spatial_bins, (*lead, 8, 2), generator=generator)
    heading = torch.randint(0, config.heading_bins, (*lead, 8, 1), generator=generator) + config.spatial_bins
    return torch.cat([spatial, heading], dim=-1).flatten(-2)
