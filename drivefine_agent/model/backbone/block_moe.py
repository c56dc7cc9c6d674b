"""Block-MoE: shared blocks, then the generation expert's last blocks or the refinement expert's copies.

The expert is chosen by a flag, never routed. Attention is segmented: 0 the context, 1 the task's instruction,
2.. the answer rows; a query sees its own segment (rows: their own row) and all lower ones. Hence the states
of a segment do not depend on later ones, and keys and values computed once are exact for every sample, step
and expert.

The refinement path is isolated: its gradient reaches the refinement blocks and nothing else. Shared blocks
run without gradient, and the final norm enters through detached weights.

Shapes: B scenes, P0 context, P1 instruction, R answer rows per scene, L slots, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from drivefine_agent.model.backbone.attention import ATTENTIONS, AttentionMask, AttentionName, kernel_mask
from drivefine_agent.model.backbone.block import (
    Attention,
    Block,
    KeysValues,
    RMSNorm,
    Rotary,
    rotary_tables,
)
from drivefine_agent.model.backbone.cache import ContextCache, PromptCache
from drivefine_agent.model.choices import EXPERTS, Expert

if TYPE_CHECKING:
    from transformers import LlamaConfig


SHORT_PROMPT = 256
"""Up to this many tokens a prompt's keys and values are copied for each answer row; those of longer prompts
are shared by all rows, which then attend as one sequence under a mask. Both are exact; copies of a short
prompt are faster, copies of a long one are most of a step's memory."""


class BlockMoE(nn.Module):
    """All transformer blocks and the final norm."""

    def __init__(self, config: LlamaConfig, n_refine: int) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.refine_layers = nn.ModuleList(Block(config) for _ in range(n_refine))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.checkpoint_blocks = False
        self.attention: AttentionName = "sdpa"

    def use_attention(self, attention: AttentionName) -> None:
        """Chooses the attention kernel of all blocks, see `attention.py`.

        Raises:
          ValueError: for an unknown kernel.
        """
        if attention not in ATTENTIONS:
            raise ValueError(f"unknown attention {attention!r}: choose one of {', '.join(ATTENTIONS)}")
        self.attention = attention
        for module in self.modules():
            if isinstance(module, Attention):
                module.attention = attention

    @property
    def shared_blocks(self) -> list[nn.Module]:
        """The first S blocks."""
        return list(self.layers)[: len(self.layers) - len(self.refine_layers)]

    def expert_blocks(self, expert: Expert) -> list[nn.Module]:
        """The last n blocks of an expert's path.

        Raises:
          ValueError: for an unknown expert, or for `refinement` of a model without refinement blocks.
        """
        if expert == "generation":
            return list(self.layers)[len(self.layers) - len(self.refine_layers) :]
        if expert == "refinement":
            if len(self.refine_layers) == 0:
                raise ValueError(
                    "this model has no refinement expert (n_refine = 0): use expert 'generation'"
                )
            return list(self.refine_layers)
        raise ValueError(f"unknown expert {expert!r}: choose one of {', '.join(EXPERTS)}")

    @torch.no_grad()
    def copy_generation_to_refinement(self) -> None:
        """Makes the refinement blocks copies of the generation expert's, the start of their training."""
        for source, target in zip(
            self.expert_blocks("generation") if len(self.refine_layers) else [],
            self.refine_layers,
            strict=True,
        ):
            for source_weight, target_weight in zip(source.parameters(), target.parameters(), strict=True):
                target_weight.copy_(source_weight)

    def encode_context(self, embeddings: Tensor, lengths: Tensor | None = None) -> ContextCache:
        """Runs segment 0 through the shared blocks.

        Args:
          embeddings: (B, P0, D), right-padded where contexts differ in length.
          lengths: (B,) true lengths, or None when nothing is padded (then no mask is used at all).
        """
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        visible = None if lengths is None else (positions < lengths[:, None])[:, None, None]  # (B, 1, 1, P0)
        mask = kernel_mask(visible, embeddings.shape[1], self.attention)
        hidden, shared = embeddings, []
        blocks = self.shared_blocks
        rotary = rotary_tables(positions, self.config)
        for i, block in enumerate(blocks):
            # Without experts behind it, the last shared block needs no output for the prompt.
            is_last = i == len(self.layers) - 1
            hidden, own = self._run(block, hidden, rotary, None, mask, is_last)
            shared.append(own)
        return ContextCache(tuple(shared), hidden, lengths)

    def append_instruction(
        self, context: ContextCache, embeddings: Tensor, expert: Expert = "generation"
    ) -> PromptCache:
        """Runs segment 1 through an expert's whole path, and segment 0 through the expert's own blocks.

        Args:
          context: segment 0.
          embeddings: (B, P1, D); instructions are equally long.
          expert: whose path.
        """
        expert_blocks = self.expert_blocks(expert)
        if expert == "refinement":
            context, embeddings = context.detach(), embeddings.detach()
        context_mask = context.key_mask
        offsets = torch.arange(embeddings.shape[1], device=embeddings.device)
        rotary = rotary_tables(context.next_positions + offsets, self.config)
        visible = _prefix_mask(context_mask, embeddings.shape[1])
        mask = kernel_mask(visible, embeddings.shape[1], self.attention)
        blocks, instruction = [], embeddings
        with torch.set_grad_enabled(torch.is_grad_enabled() and expert == "generation"):
            for i, (block, prefix) in enumerate(zip(self.shared_blocks, context.shared, strict=True)):
                is_last = i == len(self.layers) - 1
                instruction, own = self._run(block, instruction, rotary, prefix, mask, is_last)
                blocks.append(_joined(prefix, own))
        hidden = context.hidden
        context_positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        context_rotary = rotary_tables(context_positions, self.config)
        context_self_mask = kernel_mask(
            None if context_mask is None else context_mask[:, None, None], hidden.shape[1], self.attention
        )
        for i, block in enumerate(expert_blocks):
            is_last = i == len(expert_blocks) - 1
            hidden, prefix = self._run(block, hidden, context_rotary, None, context_self_mask, is_last)
            instruction, own = self._run(block, instruction, rotary, prefix, mask, is_last)
            blocks.append(_joined(prefix, own))
        key_mask = None if visible is None else visible[:, 0, 0]
        return PromptCache(expert, tuple(blocks), key_mask, context.next_positions + embeddings.shape[1])

    def prompt_states(
        self, context: Tensor, instruction: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Final hidden states of the prompt itself in the generation expert's path, for heads that read it.

        Args:
          context: (B, P0, D) embeddings of segment 0, right-padded where lengths differ.
          instruction: (B, P1, D) embeddings of segment 1.
          lengths: (B,) true lengths of the contexts, None when nothing is padded.

        Returns:
          (B, P0 + P1, D), normed, and (B, P0 + P1) True where they are not padding, None: nowhere.
        """
        places = torch.arange(context.shape[1], device=context.device)[None]
        following = torch.arange(instruction.shape[1], device=context.device)
        starts = context.shape[1] if lengths is None else lengths[:, None]
        rotary = rotary_tables(places, self.config)
        instruction_rotary = rotary_tables(starts + following[None], self.config)
        key_mask = None if lengths is None else places < lengths[:, None]
        visible = _prefix_mask(key_mask, instruction.shape[1])
        own_visible = None if key_mask is None else key_mask[:, None, None]
        mask = kernel_mask(own_visible, context.shape[1], self.attention)
        instruction_mask = kernel_mask(visible, instruction.shape[1], self.attention)
        for block in self.layers:
            context, prefix = self._run(block, context, rotary, None, mask)
            instruction, _ = self._run(block, instruction, instruction_rotary, prefix, instruction_mask)
        hidden = self.norm(torch.cat([context, instruction], dim=1))
        return hidden, None if visible is None else visible[:, 0, 0]

    def answer(self, prompt: PromptCache, embeddings: Tensor, causal: bool = False) -> Tensor:
        """Final hidden states of answer rows, each of which sees the prompt and itself.

        Args:
          prompt: segments 0 and 1.
          embeddings: (B, R, L, D), R rows per scene.
          causal: whether a slot sees only itself and earlier slots of its row.

        Returns:
          (B, R, L, D), normed: ready for the heads.
        """
        _, num_rows, length, _ = embeddings.shape
        expert_blocks = self.expert_blocks(prompt.expert)
        is_refinement = prompt.expert == "refinement"
        hidden = embeddings.detach() if is_refinement else embeddings
        positions = prompt.next_positions + torch.arange(length, device=embeddings.device)
        rotary = rotary_tables(positions, self.config)
        visible = _prefix_mask(prompt.key_mask, length)
        if causal:
            visible = _rows_mask(prompt, 1, length, causal)
        if num_rows > 1 and prompt.length > SHORT_PROMPT:
            hidden = hidden.flatten(1, 2)  # (B, R L, D): one sequence per scene
            rotary = Rotary(*(table.repeat(1, 1, num_rows, 1) for table in rotary))
            visible = _rows_mask(prompt, num_rows, length, causal)
        else:
            hidden = hidden.flatten(0, 1)  # (B R, L, D)
            if len(positions) > 1 and num_rows > 1:
                rotary = Rotary(*(table.repeat_interleave(num_rows, dim=0) for table in rotary))
            if visible is not None and len(visible) > 1:
                visible = visible.repeat_interleave(num_rows, dim=0)
        mask = kernel_mask(visible, hidden.shape[1], self.attention)
        num_shared = len(prompt.blocks) - len(expert_blocks)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_refinement):
            for block, prefix in zip(self.shared_blocks, prompt.blocks[:num_shared], strict=True):
                hidden, _ = self._run(block, hidden, rotary, prefix, mask)
        for block, prefix in zip(expert_blocks, prompt.blocks[num_shared:], strict=True):
            hidden, _ = self._run(block, hidden, rotary, prefix, mask)
        return self.norm(hidden, frozen=is_refinement).view(embeddings.shape)

    def next_token(
        self, prompt: PromptCache, embedding: Tensor, past: Sequence[KeysValues] = ()
    ) -> tuple[Tensor, tuple[KeysValues, ...]]:
        """One more token of an answer that is written from left to right, as autoregressive models do.

        Args:
          prompt: segments 0 and 1.
          embedding: (B, R, 1, D) of the newest token of R rows per scene.
          past: keys and values of the rows' earlier tokens, one entry per block; empty at the start.

        Returns:
          (B, R, 1, D), normed, and `past` with the newest token.
        """
        num_rows = embedding.shape[1]
        written = past[0].keys.shape[2] if past else 0
        positions, visible = prompt.next_positions + written, _prefix_mask(prompt.key_mask, written + 1)
        if len(positions) > 1:
            positions = positions.repeat_interleave(num_rows, dim=0)
        if visible is not None and len(visible) > 1:
            visible = visible.repeat_interleave(num_rows, dim=0)
        rotary = rotary_tables(positions, self.config)
        mask = kernel_mask(visible, 1, self.attention)
        hidden, grown = embedding.flatten(0, 1), []
        blocks = [*self.shared_blocks, *self.expert_blocks(prompt.expert)]
        for i, (block, prefix) in enumerate(zip(blocks, prompt.blocks, strict=True)):
            before = past[i] if past else None
            hidden, own = block(hidden, rotary, prefix, mask, past=before)
            grown.append(own if before is None else _joined(before, own))
        return self.norm(hidden).view(embedding.shape), tuple(grown)

    def one_pass(
        self, embeddings: Tensor, positions: Tensor, mask: Tensor, expert: Expert = "generation"
    ) -> Tensor:
        """The same function without any cache: one sequence, one explicit mask. For comparison.

        Args:
          embeddings: (B, Q, D) of everything: context, instruction and all rows.
          positions: (B or 1, Q) of each token; rows restart at the same position.
          mask: (B or 1, Q, Q) True where attention is allowed, see `segment_mask`.
          expert: whose path.

        Returns:
          (B, Q, D), normed.
        """
        rotary = rotary_tables(positions, self.config)
        hidden, allowed = embeddings, kernel_mask(mask[:, None], embeddings.shape[1], self.attention)
        for block in [*self.shared_blocks, *self.expert_blocks(expert)]:
            hidden, _ = self._run(block, hidden, rotary, None, allowed)
        return self.norm(hidden)

    def _run(
        self,
        block: nn.Module,
        hidden: Tensor,
        rotary: Rotary,
        prefix: KeysValues | None,
        mask: AttentionMask,
        keys_values_only: bool = False,
    ) -> tuple[Tensor, KeysValues]:
        if self.checkpoint_blocks and self.training and torch.is_grad_enabled():
            return checkpoint(block, hidden, rotary, prefix, mask, keys_values_only, use_reentrant=False)
        return block(hidden, rotary, prefix, mask, keys_values_only)


def segment_mask(segments: Tensor, rows: Tensor) -> Tensor:
    """Who may attend to whom.

    Args:
      segments: (..., Q) 0 context, 1 instruction, 2 answer; a negative number marks padding, seen by no one
        else.
      rows: (..., Q) number of the answer row, 0 elsewhere.

    Returns:
      (..., Q, Q) bool [query, key]: lower segments, or the same segment and the same row.
    """
    is_lower = segments[..., None, :] < segments[..., :, None]
    is_own = (segments[..., None, :] == segments[..., :, None]) & (rows[..., None, :] == rows[..., :, None])
    return (is_lower & (segments >= 0)[..., None, :]) | is_own


def _joined(prefix: KeysValues, own: KeysValues) -> KeysValues:
    return KeysValues(
        torch.cat([prefix.keys, own.keys], dim=2), torch.cat([prefix.values, own.values], dim=2)
    )


def _prefix_mask(key_mask: Tensor | None, own_length: int) -> Tensor | None:
    """(B, 1, 1, P + Q) from (B, P): the padding of the prefix is invisible, the segment itself is not."""
    if key_mask is None:
        return None
    return torch.nn.functional.pad(key_mask, (0, own_length), value=True)[:, None, None]


def _rows_mask(prompt: PromptCache, num_rows: int, length: int, causal: bool = False) -> Tensor:
    """(B or 1, 1, R L, P + R L): every answer row sees the prompt less its padding, and itself.

    With `causal`, of itself only what is not later.
    """
    device = prompt.next_positions.device
    row = torch.arange(num_rows, device=device).repeat_interleave(length)
    own = (row[:, None] == row)[None, None]
    if causal:
        own = own.tril()
    key_mask = prompt.key_mask
    if key_mask is None:
        key_mask = torch.ones(1, prompt.length, dtype=torch.bool, device=device)
    seen = key_mask[:, None, None].expand(-1, -1, len(row), -1)
    return torch.cat([seen, own.expand(len(key_mask), -1, -1, -1)], dim=-1)
