"""A distribution over the 24-slot answer: what the model returns, and what decoding and the losses read.

Kept below both, so that neither has to know the other. Shapes: `...` any leading axes, T poses (8), L slots (24),
Vs spatial and Vh heading actions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AnswerLogits(NamedTuple):
    """Logits of every slot over the actions that are legal there.

    A named tuple, so that data-parallel wrappers find the tensors in it.
    """

    spatial: Tensor
    """(..., T, 2, Vs) float32 or better, x and y slots."""
    heading: Tensor
    """(..., T, Vh) float32, heading slots."""
    log_normalizer: Tensor | None = None
    """(..., L) log of the sum of exponentials over the *whole* vocabulary, text included; None: the softmax runs over
    the slot's own table only (slot-restricted)."""

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
        spatial = torch.log_softmax(
            self.spatial / temperature if temperature != 1.0 else self.spatial, dim=-1
        )
        heading = torch.log_softmax(
            self.heading / temperature if temperature != 1.0 else self.heading, dim=-1
        )
        return self._gather(spatial, heading, classes)

    def best(self) -> Tensor:
        """(..., L) the most likely legal action of every slot."""
        return self._actions(self.spatial.argmax(-1), self.heading.argmax(-1))

    def sample(self, temperature: float, generator: torch.Generator | None = None) -> Tensor:
        """(..., L) one legal action per slot drawn from softmax(logits / temperature); 0 means the most likely.

        By the Gumbel-max trick in float32 or better, as low precision measurably changes samples.
        """
        if temperature == 0.0:
            return self.best()
        return self._actions(
            _gumbel_argmax(self.spatial, temperature, generator),
            _gumbel_argmax(self.heading, temperature, generator),
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


def _gumbel_argmax(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """argmax(logits / T - log E), E ~ Exp(1): -log E is Gumbel noise."""
    noise = torch.empty_like(logits).exponential_(generator=generator).log_()
    return torch.sub(logits, noise, alpha=temperature).argmax(-1)
