"""Masked-diffusion decoding: from all slots masked to a complete answer in a few parallel steps.

Knows nothing of images, prompts or rewards: it drives any function from partially masked answers to logits.
Shapes: B scenes, N samples per scene, L slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from drivefine_agent.actions import MASKED
from drivefine_agent.answer import AnswerLogits, OpenSlotLogits, Randomness, TextLogits, random_uniform
from drivefine_agent.constants import ANSWER_LENGTH
from drivefine_agent.diffusion.schedule import PAPER_SHIFT_ALPHA, SCHEDULES, ScheduleName, unmask_quotas

OrderName = Literal["confidence", "random"]
ORDERS: tuple[str, ...] = get_args(OrderName)

ReadoutName = Literal["median", "mode"]
READOUTS: tuple[str, ...] = get_args(ReadoutName)

AnswerModel = Callable[[Tensor], AnswerLogits | OpenSlotLogits | TextLogits]
"""(B, N, L) action (or token) ids, some `MASKED` -> logits with leading axes (B, N), of the masked slots at
least."""


@dataclass(frozen=True)
class DecodingOptions:
    """How to decode. Defaults are the paper's: 12 steps, raised cosine, confidence order, one refinement."""

    num_steps: int = 12
    """Denoising steps, 1 .. L."""
    schedule: ScheduleName = "cosine"
    """How many slots are committed when."""
    shift_alpha: float = PAPER_SHIFT_ALPHA
    """Of the `shift` schedule."""
    order: OrderName = "confidence"
    """Which slots are committed first: the most probable candidates, or random ones."""
    temperature: float = 0.0
    """Of the generation expert's candidates; 0 takes the most likely."""
    num_samples: int = 1
    """Answers per scene, all decoded in the same calls over one shared prompt."""
    second_pass: int = 0
    """Slots of each finished answer, the least certain ones, that the generation expert masks and fills in
    once more, in one step: a control for what the refinement expert adds (`model.md` 6.4)."""
    refine: bool = True
    """Whether to re-predict all slots with the refinement expert, where the model has one."""
    refine_temperature: float = 0.0
    """Of the refinement expert's samples; 0 reads its distributions out, see `refine_readout`."""
    refine_readout: ReadoutName = "median"
    """What stands for the refinement expert's 24 independent distributions at temperature 0: the medians, or
    the most likely actions. The paper does not say."""

    answer_length: int = ANSWER_LENGTH
    """L; only answers in words have another than a trajectory's."""

    def __post_init__(self) -> None:
        unmask_quotas(self.answer_length, self.num_steps, self.schedule, self.shift_alpha)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}: choose one of {', '.join(SCHEDULES)}")
        if self.order not in ORDERS:
            raise ValueError(f"unknown order {self.order!r}: choose one of {', '.join(ORDERS)}")
        if self.refine_readout not in READOUTS:
            raise ValueError(
                f"unknown refine_readout {self.refine_readout!r}: choose one of {', '.join(READOUTS)}"
            )
        if self.temperature < 0.0 or self.refine_temperature < 0.0:
            raise ValueError(
                f"temperatures must not be negative, got {self.temperature} and {self.refine_temperature}"
            )
        if not 0 <= self.second_pass <= self.answer_length:
            raise ValueError(
                f"second_pass must be in 0..{self.answer_length}, the number of slots, got {self.second_pass}"
            )
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")
        if self.num_samples > 1 and self.temperature == 0.0 and self.order == "confidence":
            raise ValueError(
                f"num_samples={self.num_samples} at temperature 0 would be copies of one answer: "
                "raise temperature"
            )

    @property
    def quotas(self) -> tuple[int, ...]:
        """Slots to commit per denoising step."""
        return unmask_quotas(self.answer_length, self.num_steps, self.schedule, self.shift_alpha)


class DenoisingTrace(NamedTuple):
    """Complete answers and how they came about."""

    actions: Tensor
    """(B, N, L) action ids, none masked."""
    step_map: Tensor
    """(B, N, L) denoising step, 0-based, in which each slot was committed."""
    log_probs: Tensor
    """(B, N, L) float32 log-probability (temperature 1) of each slot's action when it was committed."""

    def state_before(self, denoise_step: int) -> Tensor:
        """(B, N, L) the partially masked answers at the start of a step."""
        return torch.where(self.step_map < denoise_step, self.actions, MASKED)


def read_out(logits: AnswerLogits, options: DecodingOptions, generator: Randomness = None) -> Tensor:
    """(B, N, L) the refinement expert's answer: 24 independent distributions, in one step.

    Args:
      logits: of the refinement expert, given complete answers.
      options: `refine_temperature` and `refine_readout`.
      generator: for refine_temperature > 0.
    """
    if options.refine_temperature == 0.0 and options.refine_readout == "median":
        return logits.median()
    return logits.sample(options.refine_temperature, generator)


def decode(
    model: AnswerModel,
    batch_size: int,
    options: DecodingOptions,
    device: torch.device | str = "cpu",
    generator: Randomness = None,
) -> DenoisingTrace:
    """Fills in `num_samples` answers for each of `batch_size` scenes.

    In each step every masked slot draws a candidate; the step's quota of candidates is committed, the others
    are discarded. What is committed never changes again.

    Args:
      model: partially masked answers -> logits; called once per step, first for (B, 1, L): at the start, all
        samples of a scene are the same.
      batch_size: B.
      options: what to do.
      device: where the answers live.
      generator: for temperature > 0 or random order.
    """
    shape = (batch_size, options.num_samples, options.answer_length)
    actions = torch.full(shape, MASKED, dtype=torch.long, device=device)
    step_map = torch.full(shape, MASKED, dtype=torch.long, device=device)
    log_probs = torch.zeros(shape, dtype=torch.float32, device=device)
    uniform = torch.zeros(shape, dtype=torch.float64, device=device)  # unused at temperature 0
    for denoise_step, quota in enumerate(options.quotas):
        logits = model(actions if denoise_step > 0 else actions[:, :1])
        if options.temperature > 0.0:
            uniform = random_uniform(shape, generator, device)
        candidates, candidate_log_probs = logits.draw(options.temperature, uniform)
        priority = candidate_log_probs
        if options.order == "random":
            priority = random_uniform(shape, generator, device)
        priority = priority.masked_fill(actions != MASKED, -torch.inf)
        # A stable sort breaks ties by slot, so that equal confidences decode the same everywhere.
        chosen = priority.sort(dim=-1, descending=True, stable=True).indices[..., :quota]
        is_chosen = torch.zeros(shape, dtype=torch.bool, device=device).scatter_(-1, chosen, True)
        actions = torch.where(is_chosen, candidates, actions)
        step_map = step_map.masked_fill(is_chosen, denoise_step)
        log_probs = torch.where(is_chosen, candidate_log_probs, log_probs)
    trace = DenoisingTrace(actions, step_map, log_probs)
    return trace if options.second_pass == 0 else refill(model, trace, options, generator)


def refill(
    model: AnswerModel, trace: DenoisingTrace, options: DecodingOptions, generator: Randomness = None
) -> DenoisingTrace:
    """Masks the `second_pass` slots that were least certain when committed, and fills them in, in one step.

    Arguments as of `decode`. The new slots' step is `num_steps`.
    """
    shape, device = trace.actions.shape, trace.actions.device
    weakest = trace.log_probs.sort(dim=-1, stable=True).indices[..., : options.second_pass]
    is_open = torch.zeros(shape, dtype=torch.bool, device=device).scatter_(-1, weakest, True)
    uniform = torch.zeros(shape, dtype=torch.float64, device=device)
    if options.temperature > 0.0:
        uniform = random_uniform(shape, generator, device)
    actions, log_probs = model(trace.actions.masked_fill(is_open, MASKED)).draw(options.temperature, uniform)
    return DenoisingTrace(
        torch.where(is_open, actions, trace.actions),
        trace.step_map.masked_fill(is_open, options.num_steps),
        torch.where(is_open, log_probs, trace.log_probs),
    )
