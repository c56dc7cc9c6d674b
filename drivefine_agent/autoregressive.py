"""The same answer written from left to right, one token per step: a baseline of equal size.

Vision tower, prompt, blocks and action tables are DriveFine's; only the answer is causal: slot l is read from
the token before it, the first from the mask token, which serves as start token. The prompt stays
bidirectional, so that its keys and values are computed once and shared by all samples (`model.md` 6.1).
Trained with `model.decoder=autoregressive`; the same function then gives all 24 distributions in one
teacher-forced pass, `DriveFineModel.answer_logits`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drivefine_agent.actions import MASKED
from drivefine_agent.answer import Randomness, inverse_cdf, random_uniform
from drivefine_agent.constants import ANSWER_LENGTH, NUM_POSE_FIELDS
from drivefine_agent.diffusion.decoding import DecodingOptions, DenoisingTrace
from drivefine_agent.model.backbone.block import KeysValues
from drivefine_agent.model.backbone.cache import PromptCache

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


def decode_autoregressively(
    model: DriveFineModel, prompt: PromptCache, options: DecodingOptions, generator: Randomness = None
) -> DenoisingTrace:
    """(B, N, 24) actions, each drawn given the slots before it; 24 steps, growing cache.

    Args:
      model: its path of the prompt's expert is used.
      prompt: B cached prompts; the cache is read and never written.
      options: number of samples N and temperature; steps, schedule and order have no meaning here.
      generator: for temperature > 0.

    Returns:
      Answers whose slot l was committed in step l, with log-probabilities at temperature 1.
    """
    table, heading_offset = model.heads.action_head, model.config.action_spec.heading_offset
    device = prompt.next_positions.device
    shape = (prompt.batch_size, options.num_samples, ANSWER_LENGTH)
    uniform = torch.zeros(shape, dtype=torch.float64, device=device)  # unused at temperature 0
    if options.temperature > 0.0:
        uniform = random_uniform(shape, generator, device)
    action = torch.full((*shape[:2], 1), MASKED, device=device)
    past: tuple[KeysValues, ...] = ()
    actions: list[Tensor] = []
    log_probs: list[Tensor] = []
    for slot in range(ANSWER_LENGTH):
        hidden, past = model.backbone.next_token(prompt, model.embeddings.answer(action, slot), past)
        is_heading = slot % NUM_POSE_FIELDS == NUM_POSE_FIELDS - 1
        scores = (table.heading_scores if is_heading else table.spatial_scores)(hidden[:, :, 0])  # (B, N, V)
        action, log_prob = inverse_cdf(scores, options.temperature, uniform[..., slot, None])
        action = action + heading_offset if is_heading else action
        actions.append(action)
        log_probs.append(log_prob)
    step_map = torch.arange(ANSWER_LENGTH, device=device).expand(shape)
    return DenoisingTrace(torch.cat(actions, dim=-1), step_map, torch.cat(log_probs, dim=-1))
