"""Draft and refine: G answers per scene by the real denoising procedure, K refinements of each.

Everything is decoded by the functions that the agent plans with. All random numbers of a scene come from its
own generators, seeded by (seed, purpose, number of the scene's visit), so that they depend neither on the
micro-batch nor on the process that a scene is in.

Shapes: B scenes, G samples, A anchors (G, or G + 1 with the greedy answer), K refinements, L = 24 slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from drivefine_agent.answer import AnswerLogits, random_uniform
from drivefine_agent.constants import ANSWER_LENGTH
from drivefine_agent.diffusion.decoding import DecodingOptions, DenoisingTrace
from drivefine_agent.model.backbone.cache import ContextCache
from drivefine_agent.planner import generate, refiner_logits
from drivefine_agent.training.seeds import generator_for
from rl.config import HybridRolloutConfig, RolloutConfig

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


class SceneInputs(NamedTuple):
    """What the model is given of B scenes, on its device."""

    visual: Tensor
    """(B, V, D) visual tokens."""
    context_ids: Tensor
    """(B, C)."""
    context_lengths: Tensor | None
    """(B,), None where nothing is padded."""


def decoding_options(config: RolloutConfig) -> DecodingOptions:
    """How the G samples are decoded."""
    return DecodingOptions(
        num_steps=config.num_denoising_steps,
        schedule=config.schedule,
        temperature=config.temperature,
        num_samples=config.num_samples,
        refine=False,
    )


@torch.no_grad()
def encode_scenes(model: DriveFineModel, scenes: SceneInputs) -> ContextCache:
    """The scenes' prompts up to the instruction, which both experts share."""
    return model.encode_context(None, scenes.context_ids, scenes.context_lengths, scenes.visual)


@torch.no_grad()
def sample_group(
    model: DriveFineModel,
    context: ContextCache,
    predict_ids: Tensor,
    config: RolloutConfig,
    seed: int,
    visits: Sequence[int],
) -> DenoisingTrace:
    """(B, G, L) answers of the generation expert with the steps in which their tokens were committed.

    Args:
      model: the policy.
      context: from `encode_scenes`.
      predict_ids: (P1,) instruction.
      config: G, steps, temperature.
      seed: of the run.
      visits: (B,) number of each scene's visit in the run.
    """
    generators = [generator_for(seed, "drafts", visit) for visit in visits]
    return generate(model, context, predict_ids, decoding_options(config), generators)


@torch.no_grad()
def greedy_draft(
    model: DriveFineModel, context: ContextCache, predict_ids: Tensor, config: RolloutConfig
) -> Tensor:
    """(B, 1, L) the answer that the agent starts from: most likely tokens, no randomness."""
    options = DecodingOptions(num_steps=config.num_denoising_steps, schedule=config.schedule, refine=False)
    return generate(model, context, predict_ids, options).actions


@torch.no_grad()
def sample_refinements(
    model: DriveFineModel,
    context: ContextCache,
    refine_ids: Tensor,
    anchors: Tensor,
    config: HybridRolloutConfig,
    seed: int,
    visits: Sequence[int],
) -> Tensor:
    """(B, A, K, L) refinements of each anchor (B, A, L), from one pass of the refinement expert.

    Other arguments as in `sample_group`.
    """
    logits = refiner_logits(model, context, refine_ids, anchors)
    generators = [generator_for(seed, "refinements", visit) for visit in visits]
    shape = (*anchors.shape[:2], config.num_refined, ANSWER_LENGTH)
    uniform = random_uniform(shape, generators, anchors.device)
    shared = AnswerLogits(
        logits.spatial.unsqueeze(2),
        logits.heading.unsqueeze(2),
        None if logits.log_normalizer is None else logits.log_normalizer.unsqueeze(2),
    )
    return shared.draw(config.refine_temperature, uniform)[0]
