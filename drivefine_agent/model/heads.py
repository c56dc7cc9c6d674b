"""Token embeddings and output heads: the language model's own tables, unchanged, and separate action tables.

Separate, so that a checkpoint loads without resizing and the action rows can have their own learning rate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drivefine_agent.actions import MASKED, ActionSpec
from drivefine_agent.answer import AnswerLogits
from drivefine_agent.constants import NUM_POSE_FIELDS
from drivefine_agent.model.config import DriveFineConfig


class ActionTable(nn.Module):
    """One row per action; a class of its own so that initialisation knows which rows are ordinal."""

    def __init__(self, spec: ActionSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.zeros(spec.num_actions, width))

    def forward(self, action_ids: Tensor) -> Tensor:
        """(..., D) rows of action ids (...)."""
        return F.embedding(action_ids, self.weight)


class Embeddings(nn.Module):
    """Base vocabulary rows, then action rows."""

    def __init__(self, config: DriveFineConfig) -> None:
        super().__init__()
        self.base_vocab_size = config.base_vocab_size
        self.mask_token_id = config.mask_token_id
        self.embed_tokens = nn.Embedding(config.base_vocab_size, config.text_config.hidden_size)
        width = config.text_config.hidden_size
        self.action_embed = ActionTable(config.action_spec, width)
        self.context_positions = self.answer_positions = None
        if config.learned_positions:
            self.context_positions = nn.Parameter(
                torch.zeros(config.text_config.max_position_embeddings, width)
            )
            self.answer_positions = nn.Parameter(torch.zeros(config.action_spec.answer_length, width))

    def context(self, token_ids: Tensor) -> Tensor:
        """(B, C, D) of context ids (B, C), the place of each marked where places are learned."""
        embedded = self(token_ids)
        if self.context_positions is None:
            return embedded
        if token_ids.shape[1] > len(self.context_positions):
            raise ValueError(
                f"a context may have {len(self.context_positions)} ids (max_position_embeddings), "
                f"got {token_ids.shape[1]}: raise it, or use a shorter prompt"
            )
        return embedded + self.context_positions[: token_ids.shape[1]]

    def answer(self, action_ids: Tensor) -> Tensor:
        """(..., L, D) of answers (..., L), `MASKED` as the mask token, places marked where learned."""
        embedded = self(
            torch.where(action_ids == MASKED, self.mask_token_id, action_ids + self.base_vocab_size)
        )
        return embedded if self.answer_positions is None else embedded + self.answer_positions

    def forward(self, token_ids: Tensor) -> Tensor:
        """(..., D) of token ids (...); ids from `base_vocab_size` on are actions."""
        is_action = token_ids >= self.base_vocab_size
        text = self.embed_tokens(token_ids.masked_fill(is_action, 0))
        action = self.action_embed((token_ids - self.base_vocab_size).clamp(min=0))
        return torch.where(is_action[..., None], action, text)


class Heads(nn.Module):
    """Scores of base vocabulary and actions for every answer slot."""

    def __init__(self, config: DriveFineConfig) -> None:
        super().__init__()
        self.slot_restricted = config.slot_restricted
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.base_vocab_size, bias=False)
        self.action_head = ActionTable(config.action_spec, config.text_config.hidden_size)

    def forward(self, hidden: Tensor, frozen: bool = False) -> AnswerLogits:
        """Logits of answers.

        Args:
          hidden: (..., L, D) normed hidden states of complete answers.
          frozen: whether the tables get no gradient (the input still does).
        """
        table = self.action_head.weight.detach() if frozen else self.action_head.weight
        split = self.action_head.spec.heading_offset
        by_pose = hidden.unflatten(-2, (-1, NUM_POSE_FIELDS))  # (..., T, 3, D)
        if self.slot_restricted:
            return AnswerLogits(
                _scores(by_pose[..., :2, :], table[:split]), _scores(by_pose[..., 2, :], table[split:])
            )
        actions = _scores(by_pose, table)  # (..., T, 3, Vs + Vh)
        text_weight = self.lm_head.weight.detach() if frozen else self.lm_head.weight
        text = _scores(by_pose, text_weight).logsumexp(-1)
        log_normalizer = torch.logaddexp(actions.logsumexp(-1), text).flatten(-2)
        return AnswerLogits(actions[..., :2, :split], actions[..., 2, split:], log_normalizer)


def _scores(hidden: Tensor, table: Tensor) -> Tensor:
    """(..., V) products with every row, in float32 or better: softmax and sampling need it."""
    scores = F.linear(hidden, table)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
