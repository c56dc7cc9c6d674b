"""What is kept of a prompt, so that it is computed once for all samples, denoising steps and both experts.

Both records are read-only: answers never write to them. In training they carry gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from drivefine_agent.model.backbone.block import KeysValues
from drivefine_agent.model.choices import Expert


class ContextCache(NamedTuple):
    """Segment 0 (image, system turn, history, command) after the shared blocks; serves both experts."""

    shared: tuple[KeysValues, ...]
    """S entries, each (B, K, P0, E)."""
    hidden: Tensor
    """(B, P0, D) after the shared blocks: what either expert continues from."""
    lengths: Tensor | None
    """(B,) true lengths where contexts are right-padded; None: nothing is padded."""

    @property
    def key_mask(self) -> Tensor | None:
        """(B, P0) True where the context is not padding, or None."""
        if self.lengths is None:
            return None
        return torch.arange(self.hidden.shape[1], device=self.hidden.device) < self.lengths[:, None]

    @property
    def next_positions(self) -> Tensor:
        """(B, 1) position that follows each context; (1, 1) when nothing is padded."""
        if self.lengths is None:
            return torch.tensor([[self.hidden.shape[1]]], device=self.hidden.device)
        return self.lengths[:, None]

    def detach(self) -> ContextCache:
        """The same without gradients."""
        shared = tuple(KeysValues(kv.keys.detach(), kv.values.detach()) for kv in self.shared)
        return ContextCache(shared, self.hidden.detach(), self.lengths)


class PromptCache(NamedTuple):
    """Segments 0 and 1 (the task's instruction) in all blocks of one expert's path."""

    expert: Expert
    """Whose blocks the last entries belong to, and who must read this cache."""
    blocks: tuple[KeysValues, ...]
    """One entry per block on the expert's path, each (B, K, P, E)."""
    key_mask: Tensor | None
    """(B, P) True where the prompt is not padding; None: nothing is padded."""
    next_positions: Tensor
    """(B, 1) or (1, 1) position of the first answer slot."""

    @property
    def batch_size(self) -> int:
        """B: scenes."""
        return self.blocks[0].keys.shape[0]

    @property
    def length(self) -> int:
        """P: tokens, padding included."""
        return self.blocks[0].keys.shape[2]

    def select(self, index: Tensor) -> PromptCache:
        """The prompts of the scenes `index` (B',) only."""
        return PromptCache(
            self.expert,
            tuple(KeysValues(kv.keys[index], kv.values[index]) for kv in self.blocks),
            None if self.key_mask is None else self.key_mask[index],
            self.next_positions[index] if len(self.next_positions) > 1 else self.next_positions,
        )
