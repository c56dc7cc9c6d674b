"""The same answer written from left to right, one token per step, by a model of equal size.

Vision tower, prompt, blocks and action tables are DriveFine's; only the answer is causal: slot l is read from
the token before it, the first from the mask token, which serves as start token. The prompt stays
bidirectional, so that its keys and values are the same. Used to compare latencies; weights that were trained
to fill in masks do not write good answers in this order (`model.md` 6.1 says how to train such a baseline).
"""

from __future__ import annotations

import torch
from torch import Tensor

from drivefine_agent.actions import MASKED
from drivefine_agent.constants import ANSWER_LENGTH, NUM_POSE_FIELDS
from drivefine_agent.model.backbone.block import KeysValues
from drivefine_agent.model.backbone.cache import PromptCache
from drivefine_agent.model.drivefine_model import DriveFineModel


def decode_autoregressively(model: DriveFineModel, prompt: PromptCache) -> Tensor:
    """(B, 24) the most likely action of each slot given the slots before it; 24 steps, growing cache.

    Args:
      model: its path of the prompt's expert is used.
      prompt: B cached prompts; the cache is read and never written.
    """
    table, config = model.heads.action_head, model.config
    token = torch.full((prompt.batch_size, 1), MASKED, device=prompt.next_positions.device)
    past: tuple[KeysValues, ...] = ()
    answer = []
    for slot in range(ANSWER_LENGTH):
        hidden, past = model.backbone.next_token(prompt, model.embeddings.answer(token, slot), past)
        if slot % NUM_POSE_FIELDS == 2:
            token = table.heading_scores(hidden).argmax(-1) + config.action_spec.heading_offset
        else:
            token = table.spatial_scores(hidden).argmax(-1)
        answer.append(token)
    return torch.cat(answer, dim=1)
