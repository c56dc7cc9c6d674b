"""A distribution over the 24-slot answer: what the model returns, and what decoding and the losses read.

Kept below both, so that neither has to know the other. Shapes: `...` any leading axes, T poses (8), L slots
(24), Vs spatial and Vh heading actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Randomness = torch.Generator | Sequence[torch.Generator] | None
"""Where random numbers come from: torch's global generator, one for the whole batch, or one per scene, so
that a scene's numbers do not depend on what else is in the batch."""


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

    def median(self) -> Tensor:
        """(..., L) the action at which half of the slot's probability is reached.

        Actions of a table are ordered by value. Where slots are read out independently of each other, as the
        refinement expert's are, medians of neighbouring poses follow each other smoothly; the most likely
        bins of flat distributions jump about, and a jumping plan is not comfortable to drive.
        """
        return self._actions(_median_class(self.spatial), _median_class(self.heading))

    def sample(self, temperature: float, generator: Randomness = None) -> Tensor:
        """(..., L) one legal action per slot, from softmax(logits / temperature); 0 means the most likely.

        Args:
          temperature: of the softmax.
          generator: of the random numbers.
        """
        if temperature == 0.0:
            return self.best()
        shape = (*self.heading.shape[:-2], 3 * self.heading.shape[-2])
        uniform = random_uniform(shape, generator, self.heading.device)
        return self._drawn(temperature, uniform[..., None])[0].squeeze(-1)

    def draw(self, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """One action per slot of each sample, by inverting the cumulative distributions.

        The same distribution as the Gumbel-max trick, with one random number per slot instead of one per
        action, which is tens of times faster on a CPU.

        Args:
          temperature: of the softmax; 0 means the most likely.
          uniform: (..., N, L) float64 in [0, 1): N samples from N rows of logits, or from one row that they
            share.

        Returns:
          (..., N, L) actions and (..., N, L) float32 their log-probabilities at temperature 1.
        """
        if self.heading.shape[-3] == uniform.shape[-2]:
            actions, log_probs = self._drawn(temperature, uniform[..., None])
            return actions.squeeze(-1), log_probs.squeeze(-1)
        points = uniform.movedim(-2, -1).unsqueeze(-3)  # (..., 1, L, N)
        actions, log_probs = self._drawn(temperature, points)
        return actions.squeeze(-3).movedim(-1, -2), log_probs.squeeze(-3).movedim(-1, -2)

    def log_probs_of_each(self, answers: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probability of several answers under each row of logits.

        Args:
          answers: (..., M, L) legal action ids, M answers for the logits' leading axes (...).
          temperature: of the softmax; must be 1 unless slot-restricted.

        Returns:
          (..., M, L) float32.
        """
        classes = self._classes(answers).movedim(-3, -1)  # (..., T, 3, M)
        spatial, heading = self.spatial, self.heading
        if self.log_normalizer is not None and temperature != 1.0:
            raise ValueError(f"with a full-vocabulary softmax temperature must be 1, got {temperature}")
        if self.log_normalizer is None:
            if temperature != 1.0:
                spatial, heading = spatial / temperature, heading / temperature
            spatial, heading = torch.log_softmax(spatial, -1), torch.log_softmax(heading, -1)
        picked = torch.cat(
            [spatial.gather(-1, classes[..., :2, :]), heading.gather(-1, classes[..., 2, :])[..., None, :]],
            dim=-2,
        ).flatten(-3, -2)  # (..., L, M)
        if self.log_normalizer is not None:
            picked = picked - self.log_normalizer[..., None]
        return picked.movedim(-1, -2)

    def entropy(self) -> Tensor:
        """(..., L) entropy [nat] of each slot over its legal actions."""
        spatial, heading = torch.log_softmax(self.spatial, -1), torch.log_softmax(self.heading, -1)
        return _interleave(-(spatial.exp() * spatial).sum(-1), -(heading.exp() * heading).sum(-1))

    def _drawn(self, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """(..., L, N) actions and log-probabilities at the points `uniform` (..., L, N)."""
        points = uniform.unflatten(-2, (-1, 3))  # (..., T, 3, N)
        spatial, spatial_log_probs = inverse_cdf(self.spatial, temperature, points[..., :2, :])
        heading, heading_log_probs = inverse_cdf(self.heading, temperature, points[..., 2, :])
        actions = torch.cat([spatial, (heading + self.spatial.shape[-1])[..., None, :]], dim=-2)
        actions = actions.flatten(-3, -2)
        if self.log_normalizer is not None:
            each = actions.movedim(-1, -2)
            return actions, self.log_probs_of_each(each).movedim(-2, -1)
        log_probs = torch.cat([spatial_log_probs, heading_log_probs[..., None, :]], dim=-2)
        return actions, log_probs.flatten(-3, -2)

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


class TextLogits(NamedTuple):
    """Scores of an answer in words: every slot over the whole base vocabulary of V tokens."""

    scores: Tensor
    """(..., L, V) float32, -inf where a token is no answer."""

    def log_probs(self, token_ids: Tensor) -> Tensor:
        """(..., L) log-probability of one token per slot; leading axes broadcast against the scores'."""
        lead = torch.broadcast_shapes(token_ids.shape, self.scores.shape[:-1])
        return _fused_log_probs(self.scores.expand(*lead, -1), token_ids.expand(lead))

    def draw(self, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """As `AnswerLogits.draw`: (..., N, L) tokens and their log-probabilities at temperature 1."""
        if self.scores.shape[-3] == uniform.shape[-2]:
            tokens, log_probs = inverse_cdf(self.scores, temperature, uniform[..., None])
            return tokens.squeeze(-1), log_probs.squeeze(-1)
        points = uniform.movedim(-2, -1).unsqueeze(-3)  # (..., 1, L, N)
        tokens, log_probs = inverse_cdf(self.scores, temperature, points)
        return tokens.squeeze(-3).movedim(-1, -2), log_probs.squeeze(-3).movedim(-1, -2)


class OpenSlotLogits(NamedTuple):
    """Logits of those slots only that a denoising step can still fill in; slot-restricted.

    Late steps have few of them, and most of a step's work in a small model is in the heads.
    """

    spatial: Tensor
    """(Ms, Vs) of the open x and y slots, in their order within `is_open`."""
    heading: Tensor
    """(Mh, Vh) of the open heading slots."""
    is_open: Tensor
    """(..., N, L) bool."""

    def draw(self, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """As `AnswerLogits.draw`, of N rows; action 0 and log-probability -inf in slots that are not open."""
        is_heading = torch.arange(self.is_open.shape[-1], device=self.is_open.device) % 3 == 2
        actions = torch.zeros(self.is_open.shape, dtype=torch.long, device=self.is_open.device)
        log_probs = torch.full(self.is_open.shape, -torch.inf, device=self.is_open.device)
        for logits, slots, offset in (
            (self.spatial, self.is_open & ~is_heading, 0),
            (self.heading, self.is_open & is_heading, self.spatial.shape[-1]),
        ):
            classes, drawn_log_probs = inverse_cdf(logits, temperature, uniform[slots][:, None])
            actions[slots] = classes.squeeze(-1) + offset
            log_probs[slots] = drawn_log_probs.squeeze(-1)
        return actions, log_probs


def random_uniform(shape: Sequence[int], generator: Randomness, device: torch.device | str) -> Tensor:
    """(B, ...) float64 in [0, 1) on a device; generators may live on another one, such as the CPU.

    Raises:
      ValueError: the number of generators is not B.
    """
    if not isinstance(generator, Sequence):
        source = device if generator is None else generator.device
        return torch.rand(shape, generator=generator, device=source, dtype=torch.float64).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"expected one generator for each of {shape[0]} scenes, got {len(generator)}")
    rows = [torch.rand(shape[1:], generator=g, device=g.device, dtype=torch.float64) for g in generator]
    return torch.stack(rows).to(device)


def _interleave(spatial: Tensor, heading: Tensor) -> Tensor:
    """(..., L) slots in order from (..., T, 2) and (..., T)."""
    return torch.cat([spatial, heading[..., None]], dim=-1).flatten(-2)


def _fused_log_probs(logits: Tensor, classes: Tensor) -> Tensor:
    """(...) log-probability of one class (...) per row of logits (..., V)."""
    nll = F.cross_entropy(logits.flatten(0, -2), classes.flatten(), reduction="none")
    return -nll.view(classes.shape)


def _median_class(logits: Tensor) -> Tensor:
    """(...) first index at which the cumulative probability of softmax(logits (..., V)) reaches 1/2."""
    reached = torch.softmax(logits, dim=-1).cumsum(-1, dtype=torch.float64)
    half = 0.5 * reached[..., -1:]  # of a sum that rounding may keep from 1
    return torch.searchsorted(reached, half).squeeze(-1)


def inverse_cdf(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Indices drawn from softmax(logits / T): first a chunk of the last axis, then inside the chunk.

    Args:
      logits: (..., V).
      temperature: 0 means the most likely, whatever `uniform`.
      uniform: (..., N) float64 in [0, 1).

    Returns:
      (..., N) indices and (..., N) float32 their log-probabilities at temperature 1.
    """
    if temperature == 0.0:
        best, index = logits.max(dim=-1, keepdim=True)
        log_probs = (best - logits.logsumexp(-1, keepdim=True)).float()
        return index.expand(uniform.shape), log_probs.expand(uniform.shape)
    size = logits.shape[-1]
    chunk_size = max(d for d in range(1, min(size, 64) + 1) if size % d == 0)
    scaled = logits if temperature == 1.0 else logits / temperature
    best = scaled.amax(dim=-1, keepdim=True)
    chunks = (scaled - best).exp_().unflatten(-1, (-1, chunk_size))  # (..., C, W)
    chunk_ends = chunks.sum(-1).cumsum(-1, dtype=torch.float64)  # (..., C)
    point = uniform.contiguous() * chunk_ends[..., -1:]
    # right=True: the first end strictly above the point, so an action of probability zero is never drawn.
    chunk = torch.searchsorted(chunk_ends, point, right=True).clamp(max=chunk_ends.shape[-1] - 1)
    begin = torch.where(chunk > 0, chunk_ends.gather(-1, (chunk - 1).clamp(min=0)), 0.0)
    inside = chunks.gather(-2, chunk[..., None].expand(*chunk.shape, chunk_size))  # (..., N, W)
    ends = inside.cumsum(-1, dtype=torch.float64)
    # The chunk's own sum was rounded: a point beyond its last end belongs to the last action with any weight.
    rest = torch.minimum((point - begin)[..., None], ends[..., -1:] * (1 - 2.0**-52))
    offset = torch.searchsorted(ends, rest, right=True).clamp(max=chunk_size - 1).squeeze(-1)
    index = chunk * chunk_size + offset
    picked = logits.gather(-1, index)
    if temperature == 1.0:
        return index, (picked - (best + chunk_ends[..., -1:].log())).float()
    return index, (picked - logits.logsumexp(-1, keepdim=True)).float()
