"""Token embeddings and output heads: the language model's own tables, unchanged, and separate action tables.

Separate, so that a checkpoint loads without resizing and the action rows can have their own learning rate.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drivefine_agent.actions import MASKED, ActionSpec
from drivefine_agent.answer import AnswerLogits
from drivefine_agent.constants import NUM_POSE_FIELDS
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.initialisation import ordinal_features


class ActionTable(nn.Module):
    """One row per action, each a parameter of its own: for fine-tuning beside a pretrained vocabulary."""

    def __init__(self, spec: ActionSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.zeros(spec.num_actions, width))

    def forward(self, action_ids: Tensor) -> Tensor:
        """(..., D) rows of action ids (...)."""
        return F.embedding(action_ids, self.weight)

    def spatial_scores(self, hidden: Tensor, frozen: bool = False) -> Tensor:
        """(..., Vs) float32 products of hidden states (..., D) with the rows of positions.

        Args:
          hidden: hidden states.
          frozen: whether the table gets no gradient (the hidden states still do).
        """
        return _scores(hidden, _weight(self.weight, frozen)[: self.spec.heading_offset])

    def heading_scores(self, hidden: Tensor, frozen: bool = False) -> Tensor:
        """(..., Vh) the same with the rows of headings."""
        return _scores(hidden, _weight(self.weight, frozen)[self.spec.heading_offset :])


class OrdinalActionTable(nn.Module):
    """Rows that are a learned linear map of fixed Fourier features of the action's value.

    What is learned of one value then holds for its neighbours, and logits are smooth over the bins, so that
    their maximum is well defined. For small models trained from scratch on thousands of scenes, where most
    rows of a free table would hardly ever be a target. Not in the paper.
    """

    def __init__(self, spec: ActionSpec, width: int, std: float) -> None:
        super().__init__()
        self.spec = spec
        self.std = std
        self.spatial = nn.Parameter(torch.zeros(width, width))
        self.heading = nn.Parameter(torch.zeros(width, width))

    def forward(self, action_ids: Tensor) -> Tensor:
        """(..., D) rows of action ids (...)."""
        features = F.embedding(action_ids, self._features(self.spatial))
        is_heading = (action_ids >= self.spec.heading_offset)[..., None]
        return torch.where(is_heading, features @ self.heading, features @ self.spatial)

    def spatial_scores(self, hidden: Tensor, frozen: bool = False) -> Tensor:
        """As `ActionTable.spatial_scores`."""
        features = self._features(hidden)[: self.spec.heading_offset]
        return _scores(hidden @ _weight(self.spatial, frozen).T, features)

    def heading_scores(self, hidden: Tensor, frozen: bool = False) -> Tensor:
        """As `ActionTable.heading_scores`."""
        features = self._features(hidden)[self.spec.heading_offset :]
        return _scores(hidden @ _weight(self.heading, frozen).T, features)

    def _features(self, like: Tensor) -> Tensor:
        """(num_actions, D) fixed features, of the device and type of a tensor."""
        return _features_of(self.spec, self.spatial.shape[0], self.std, like.device, like.dtype)


class Embeddings(nn.Module):
    """Base vocabulary rows, then action rows."""

    def __init__(self, config: DriveFineConfig) -> None:
        super().__init__()
        self.base_vocab_size = config.base_vocab_size
        self.mask_token_id = config.mask_token_id
        self.embed_tokens = nn.Embedding(config.base_vocab_size, config.text_config.hidden_size)
        width = config.text_config.hidden_size
        self.action_embed = make_action_table(config)
        self.context_positions = self.answer_positions = None
        if config.learned_positions:
            self.context_positions = nn.Parameter(
                torch.zeros(config.text_config.max_position_embeddings, width)
            )
            self.answer_positions = nn.Parameter(torch.zeros(config.action_spec.answer_length, width))

    def context(self, token_ids: Tensor) -> Tensor:
        """(B, C, D) of context ids (B, C), the place of each marked where places are learned."""
        embedded = self(token_ids)
        return embedded if self.context_positions is None else embedded + self._places(token_ids.shape[1])

    def answer(self, action_ids: Tensor, first_slot: int = 0) -> Tensor:
        """(..., L, D) of answers (..., L), `MASKED` as the mask token, places marked where learned.

        Args:
          action_ids: a whole answer, or L consecutive slots of one.
          first_slot: where these slots begin.
        """
        embedded = self(
            torch.where(action_ids == MASKED, self.mask_token_id, action_ids + self.base_vocab_size)
        )
        if self.answer_positions is None:
            return embedded
        return embedded + self.answer_positions[first_slot : first_slot + action_ids.shape[-1]]

    def text_answer(self, token_ids: Tensor) -> Tensor:
        """(..., L, D) of answers in words (..., L): base ids, `MASKED` as the mask token.

        Where places are learned, those of the context mark them, counted from the answer's start: they exist
        for any length.
        """
        embedded = self.embed_tokens(torch.where(token_ids == MASKED, self.mask_token_id, token_ids))
        return embedded if self.context_positions is None else embedded + self._places(token_ids.shape[-1])

    def _places(self, length: int) -> Tensor:
        assert self.context_positions is not None
        if length > len(self.context_positions):
            raise ValueError(
                f"a text may have {len(self.context_positions)} ids (max_position_embeddings), "
                f"got {length}: raise it, or use a shorter text"
            )
        return self.context_positions[:length]

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
        self.mask_token_id = config.mask_token_id
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.base_vocab_size, bias=False)
        self.action_head = make_action_table(config)

    def forward(self, hidden: Tensor, frozen: bool = False) -> AnswerLogits:
        """Logits of answers.

        Args:
          hidden: (..., L, D) normed hidden states of complete answers.
          frozen: whether the tables get no gradient (the input still does).
        """
        by_pose = hidden.unflatten(-2, (-1, NUM_POSE_FIELDS))  # (..., T, 3, D)
        table = self.action_head
        if self.slot_restricted:
            return AnswerLogits(
                table.spatial_scores(by_pose[..., :2, :], frozen),
                table.heading_scores(by_pose[..., 2, :], frozen),
            )
        spatial, heading = table.spatial_scores(by_pose, frozen), table.heading_scores(by_pose, frozen)
        text = _scores(by_pose, _weight(self.lm_head.weight, frozen))
        normalizer = torch.stack([scores.logsumexp(-1) for scores in (spatial, heading, text)]).logsumexp(0)
        return AnswerLogits(spatial[..., :2, :], heading[..., 2, :], normalizer.flatten(-2))

    def text(self, hidden: Tensor) -> Tensor:
        """(..., L, V) float32 scores of the base vocabulary; a mask is never an answer, its score is -inf."""
        scores = _scores(hidden, self.lm_head.weight)
        scores[..., self.mask_token_id] = -torch.inf
        return scores


def make_action_table(config: DriveFineConfig) -> ActionTable | OrdinalActionTable:
    """The table that `config.action_rows` asks for, not yet initialised."""
    width = config.text_config.hidden_size
    if config.action_rows == "free":
        return ActionTable(config.action_spec, width)
    return OrdinalActionTable(config.action_spec, width, config.action_std)


@torch.compiler.assume_constant_result
def _features_of(
    spec: ActionSpec, width: int, std: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """`_scaled_features`, a constant for the compiler, which would compute them anew in every call."""
    return _scaled_features(spec, width, std, device, dtype)


@functools.lru_cache(maxsize=8)
def _scaled_features(
    spec: ActionSpec, width: int, std: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(num_actions, width) Fourier features whose orthogonal maps have spread `std`."""
    with torch.inference_mode(False):  # kept for calls with gradient too, whoever asks first
        return (ordinal_features(spec, width) * std).to(device, dtype)


def _weight(parameter: Tensor, frozen: bool) -> Tensor:
    return parameter.detach() if frozen else parameter


def _scores(hidden: Tensor, table: Tensor) -> Tensor:
    """(..., V) products with every row, in float32 or better: softmax and sampling need it."""
    scores = F.linear(hidden, table)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
