"""A distribution over the 24-slot answer: what the model returns, and what decoding and the losses read.

Kept below both, so that neither has to know the other. Shapes: `...` any leading axes, T poses (8), L slots
(24), Vs spatial and Vh heading actions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class AnswerLogits(NamedTuple):
    """Logits of every slot over the actions that are legal there.

    A named tuple, so that data-parallel wrappers find the tensors in it.
    """

    spatial: Tensor
    """(..., T, 2, Vs) float32 or better, x and y slots."""
    heading: Tensor
    """(..., T, Vh) float32, heading slots."""
    log_normalizer: Tensor | None = None
    """(..., L) log of the sum of exponentials over the *whole* vocabulary, text included.

    None: the softmax runs over the slot's own table only (slot-restricted).
    """

    def log_probs(self, actions: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probability of one action per slot.

        Args:
          actions: (..., L) legal action ids, none masked; leading axes broadcast against those of the logits.
          temperature: of the softmax; must be 1 unless slot-restricted.

        Returns:
          (..., L) float32.
        """
        classes = self._classes(actions)
        if self.log_normalizer is not None:
            if temperature != 1.0:
                raise ValueError(f"with a full-vocabulary softmax temperature must be 1, got {temperature}")
            return self._gather(self.spatial, self.heading, classes) - self.log_normalizer
        spatial, heading = self.spatial, self.heading
        if temperature != 1.0:
            spatial, heading = spatial / temperature, heading / temperature
        if (
            classes.shape[:-1] == heading.shape[:-1]
        ):  # one answer per row of logits: the fused kernel is faster
            return _interleave(
                _fused_log_probs(spatial, classes[..., :2]), _fused_log_probs(heading, classes[..., 2])
            )
        return self._gather(torch.log_softmax(spatial, -1), torch.log_softmax(heading, -1), classes)

    def best(self) -> Tensor:
        """(..., L) the most likely legal action of every slot."""
        return self._actions(self.spatial.argmax(-1), self.heading.argmax(-1))

    def sample(self, temperature: float, generator: torch.Generator | None = None) -> Tensor:
        """(..., L) one legal action per slot, from softmax(logits / temperature); 0 means the most likely.

        By inverting the cumulative distribution in float64: the same distribution as the Gumbel-max trick,
        with one random number per slot instead of one per action, which is tens of times faster on a CPU.
        """
        if temperature == 0.0:
            return self.best()
        return self._actions(
            _inverse_cdf_sample(self.spatial, temperature, generator),
            _inverse_cdf_sample(self.heading, temperature, generator),
        )

    def entropy(self) -> Tensor:
        """(..., L) entropy [nat] of each slot over its legal actions."""
        spatial, heading = torch.log_softmax(self.spatial, -1), torch.log_softmax(self.heading, -1)
        return _interleave(-(spatial.exp() * spatial).sum(-1), -(heading.exp() * heading).sum(-1))

    def _classes(self, actions: Tensor) -> Tensor:
        """(..., T, 3) index of each action within its slot's table."""
        classes = actions.unflatten(-1, (-1, 3)).clone()
        classes[..., 2] -= self.spatial.shape[-1]
        return classes

    def _actions(self, spatial_class: Tensor, heading_class: Tensor) -> Tensor:
        return _interleave(spatial_class, heading_class + self.spatial.shape[-1])

    @staticmethod
    def _gather(spatial: Tensor, heading: Tensor, classes: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(spatial.shape[:-3], classes.shape[:-2])
        spatial = spatial.expand(*lead, *spatial.shape[-3:])
        heading = heading.expand(*lead, *heading.shape[-2:])
        classes = classes.expand(*lead, *classes.shape[-2:])
        return _interleave(
            spatial.gather(-1, classes[..., :2, None]).squeeze(-1),
            heading.gather(-1, classes[..., 2:]).squeeze(-1),
        )


def _interleave(spatial: Tensor, heading: Tensor) -> Tensor:
    """(..., L) slots in order from (..., T, 2) and (..., T)."""
    return torch.cat([spatial, heading[..., None]], dim=-1).flatten(-2)


def _fused_log_probs(logits: Tensor, classes: Tensor) -> Tensor:
    """(...) log-probability of one class (...) per row of logits (..., V)."""
    nll = F.cross_entropy(logits.flatten(0, -2), classes.flatten(), reduction="none")
    return -nll.view(classes.shape)


def _inverse_cdf_sample(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """(...) indices drawn from softmax(logits / T): first a chunk of the last axis, then inside the chunk."""
    size = logits.shape[-1]
    chunk_size = max(d for d in range(1, min(size, 64) + 1) if size % d == 0)
    chunks = torch.softmax(logits / temperature, dim=-1).unflatten(-1, (-1, chunk_size))  # (..., C, W)
    chunk_ends = chunks.sum(-1, dtype=torch.float64).cumsum(-1)  # (..., C)
    uniform = torch.rand(logits.shape[:-1], generator=generator, device=logits.device, dtype=torch.float64)
    point = (uniform * chunk_ends[..., -1])[..., None]
    # right=True: the first end strictly above the point, so an action of probability zero is never drawn.
    chunk = torch.searchsorted(chunk_ends, point, right=True).clamp(max=chunk_ends.shape[-1] - 1)
    begin = torch.where(chunk > 0, chunk_ends.gather(-1, (chunk - 1).clamp(min=0)), 0.0)
    inside = chunks.gather(-2, chunk[..., None].expand(*chunk.shape, chunk_size)).squeeze(-2)
    ends = inside.cumsum(-1, dtype=torch.float64)
    offset = torch.searchsorted(ends, point - begin, right=True).clamp(max=chunk_size - 1)
    return (chunk * chunk_size + offset).squeeze(-1)
