"""The policy that is trained: log-probabilities of sampled answers under both experts, in one forward pass.

Generator: each of a sample's 24 tokens is scored once, at the state in which its group of `tau` denoising
steps began (equation 4). A sample is then J = ceil(s / tau) partially masked rows; the first of them, all
masked, is the same for all samples of a scene and computed once. Refiner: its one-step distribution given an
anchor scores any number of targets. All rows of a scene share one prompt. An autoregressive model's tokens
are scored given the tokens before them.

Shapes: B scenes, G samples, A anchors (the G samples, or G + 1), M targets per anchor, J rows, L = 24 slots.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from drivefine_agent.actions import MASKED
from drivefine_agent.model.backbone.cache import ContextCache
from drivefine_agent.planner import refiner_logits

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


class PolicyBatch(NamedTuple):
    """A micro-batch of B scenes with what was sampled in them, on the model's device."""

    context_ids: Tensor
    """(B, C) token ids, right-padded."""
    context_lengths: Tensor | None
    """(B,), None where nothing is padded."""
    predict_ids: Tensor
    """(P1,) instruction of the generation expert."""
    refine_ids: Tensor
    """(P1',) instruction of the refinement expert."""
    actions: Tensor
    """(B, G, L) sampled answers."""
    step_map: Tensor | None
    """(B, G, L) denoising step in which each token was committed; None: the generator is not asked."""
    targets: Tensor | None
    """(B, A, M, L) answers whose likelihood given each anchor is wanted; None: the refiner is not asked."""
    visual: Tensor | None = None
    """(B, V, D) visual tokens; vision is frozen, so that they can be kept."""
    tiles: Tensor | None = None
    """(B, T, S, S, 3) uint8, in place of `visual`."""
    anchors: Tensor | None = None
    """(B, A, L) answers that the refiner is given; None: the samples."""
    wants_entropy: bool = False
    """Whether entropies are computed too."""


class PolicyLogProbs(NamedTuple):
    """Log-probabilities under both experts; None where they were not asked for."""

    generator: Tensor | None
    """(B, G, L) of every token at the state in which its group began."""
    refiner: Tensor | None
    """(B, A, M, L) of every target token given the anchor."""
    generator_entropy: Tensor | None = None
    """(B, G, L) entropy [nat] of the same distributions, without gradient."""
    refiner_entropy: Tensor | None = None
    """(B, A, L)."""

    def detach(self) -> PolicyLogProbs:
        """The same without gradients: the old log-probabilities of a rollout's only update."""
        return PolicyLogProbs(*(None if values is None else values.detach() for values in self))


class PolicyModule(nn.Module):
    """What the engine wraps; see `policy_log_probs`."""

    def __init__(
        self,
        model: DriveFineModel,
        tau: int,
        num_steps: int,
        temperature: float = 1.0,
        refine_temperature: float = 1.0,
    ) -> None:
        """Args as of `policy_log_probs`.

        Raises:
          ValueError: a temperature is not 1 and the model's softmax runs over its whole vocabulary.
        """
        super().__init__()
        if (temperature, refine_temperature) != (1.0, 1.0) and not model.config.slot_restricted:
            raise ValueError(
                "with a full-vocabulary softmax rollout.temperature and .refine_temperature must be 1, "
                f"got {temperature} and {refine_temperature}: sampling and log-probabilities would differ"
            )
        self.model = model
        self.tau = tau
        self.num_steps = num_steps
        self.temperature = temperature
        self.refine_temperature = refine_temperature

    def forward(self, batch: PolicyBatch) -> PolicyLogProbs:
        """Log-probabilities with gradient; one call, so that no expert is idle in a forward pass."""
        return policy_log_probs(
            self.model, batch, self.tau, self.num_steps, self.temperature, self.refine_temperature
        )


def policy_log_probs(
    model: DriveFineModel,
    batch: PolicyBatch,
    tau: int,
    num_steps: int,
    temperature: float = 1.0,
    refine_temperature: float = 1.0,
) -> PolicyLogProbs:
    """Log-probabilities of a micro-batch.

    Gradients reach language model and action tables from the generator's, the refinement blocks and nothing
    else from the refiner's.

    Args:
      model: the policy, or the frozen reference.
      batch: scenes, samples, targets.
      tau: denoising steps per group.
      num_steps: s, denoising steps of the samples.
      temperature: of the generation expert's softmax, as in sampling.
      refine_temperature: of the refinement expert's.
    """
    visual = batch.visual
    if visual is None and batch.tiles is not None:
        with torch.no_grad():
            visual = model.encode_images(batch.tiles)
    needs_gradient = torch.is_grad_enabled() and batch.step_map is not None
    with torch.set_grad_enabled(needs_gradient):
        context = model.encode_context(None, batch.context_ids, batch.context_lengths, visual)
    generator = generator_entropy = refiner = refiner_entropy = None
    if batch.step_map is not None and model.is_autoregressive:
        generator, generator_entropy = _written_log_probs(model, context, batch, temperature)
    elif batch.step_map is not None:
        generator, generator_entropy = _trace_log_probs(model, context, batch, tau, num_steps, temperature)
    if batch.targets is not None:
        anchors = batch.actions if batch.anchors is None else batch.anchors
        logits = refiner_logits(model, context, batch.refine_ids, anchors)
        refiner = logits.log_probs_of_each(batch.targets, refine_temperature)
        if batch.wants_entropy:
            with torch.no_grad():
                refiner_entropy = logits.entropy()
    return PolicyLogProbs(generator, refiner, generator_entropy, refiner_entropy)


def _written_log_probs(
    model: DriveFineModel, context: ContextCache, batch: PolicyBatch, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """The same of an autoregressive model: every token given those before it, one pass over G rows."""
    prompt = model.append_instruction(context, batch.predict_ids)
    logits = model.answer_logits(prompt, batch.actions)
    log_probs = logits.log_probs(batch.actions, temperature)
    if not batch.wants_entropy:
        return log_probs, None
    with torch.no_grad():
        return log_probs, logits.entropy()


def num_trace_rows(num_steps: int, tau: int) -> int:
    """J: groups of `tau` denoising steps, the last one shorter where tau does not divide s."""
    return math.ceil(num_steps / tau)


def trace_rows(actions: Tensor, step_map: Tensor, tau: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """The states in which a scene's samples are scored, and where each token is.

    Args:
      actions: (B, G, L) complete answers.
      step_map: (B, G, L) step in which each token was committed.
      tau: steps per group.
      num_rows: J.

    Returns:
      (B, 1 + G (J - 1), L) partially masked answers: all masked, then rows 1 .. J - 1 of each sample, which
      hold the tokens of earlier groups; (B, G, L) the row in which each token is scored, masked.
    """
    group = torch.div(step_map, tau, rounding_mode="floor")  # (B, G, L)
    row = torch.arange(1, num_rows, device=actions.device)[:, None]  # (J - 1, 1)
    later = torch.where(group[:, :, None] < row, actions[:, :, None], MASKED)  # (B, G, J - 1, L)
    first = torch.full_like(actions[:, :1], MASKED)
    own_rows = torch.arange(actions.shape[1], device=actions.device)[:, None] * (num_rows - 1)  # (G, 1)
    scored_row = torch.where(group == 0, 0, own_rows + group)
    return torch.cat([first, later.flatten(1, 2)], dim=1), scored_row


def _trace_log_probs(
    model: DriveFineModel,
    context: ContextCache,
    batch: PolicyBatch,
    tau: int,
    num_steps: int,
    temperature: float,
) -> tuple[Tensor, Tensor | None]:
    """(B, G, L) log-probability of every committed token at its group's state, and the entropy there."""
    assert batch.step_map is not None
    rows, scored_row = trace_rows(batch.actions, batch.step_map, tau, num_trace_rows(num_steps, tau))
    prompt = model.append_instruction(context, batch.predict_ids)
    hidden = model.answer_hidden(prompt, rows)  # (B, 1 + G (J - 1), L, D)
    index = scored_row[..., None].expand(-1, -1, -1, hidden.shape[-1])
    logits = model.logits_of(hidden.gather(1, index))  # (B, G)
    log_probs = logits.log_probs(batch.actions, temperature)
    if not batch.wants_entropy:
        return log_probs, None
    with torch.no_grad():
        return log_probs, logits.entropy()
