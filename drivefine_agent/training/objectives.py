"""The supervised losses: of the generator, of the refiner, and of a vision tower from scratch.

Complementary masking, of trajectories and of answers in words; spoilt demonstrations; a bird's-eye grid.

Shapes: B scenes, N pairs per scene, R spoilt rows per scene, L = 24 slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from drivefine_agent.diffusion.continuous import NUM_TIMES, add_noise, normalise
from drivefine_agent.diffusion.decoding import DecodingOptions, decode
from drivefine_agent.diffusion.losses import (
    AnswerLoss,
    LossWeightName,
    answer_cross_entropy,
    masked_pair_weights,
    pair_scored_row,
)
from drivefine_agent.diffusion.masking import (
    NoiseName,
    complementary_rows,
    mask_actions,
    sample_mask_ratios,
    sample_masks,
)
from drivefine_agent.model.backbone.cache import ContextCache
from drivefine_agent.planner import refiner_logits
from drivefine_agent.prompt import PromptBuilder
from drivefine_agent.tokenizer import ActionTokenizer
from drivefine_agent.training.config import GeneratorConfig, RefinerConfig
from drivefine_agent.training.corruptions import Corruption, displace_numbers, draw_corruptions, drift
from drivefine_agent.training.demonstrations import Batch
from drivefine_agent.training.questions import TextBatch

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


class Instructions:
    """Token ids of the tasks' instructions, on the model's device."""

    def __init__(self, prompts: PromptBuilder, device: torch.device | str) -> None:
        self.predict = torch.from_numpy(prompts.instruction("predict")).to(device)
        self.refine = torch.from_numpy(prompts.instruction("refine")).to(device)
        self.answer = torch.from_numpy(prompts.instruction("answer")).to(device)


class TextLoss(NamedTuple):
    """Loss of answers in words."""

    total: Tensor
    """() to be minimised."""
    nll: Tensor
    """() mean negative log-likelihood per slot [nat], unweighted, detached."""


class NoiseLoss(NamedTuple):
    """Loss of a diffusion head."""

    total: Tensor
    """() mean squared error of the predicted noise, to be minimised."""


class MixedLoss(NamedTuple):
    """Loss of a step whose examples went through the model in several parts."""

    total: Tensor
    """() mean over examples, to be minimised."""
    scalars: dict[str, float]
    """What is worth logging."""


def visual_of(model: DriveFineModel, batch: Batch | TextBatch) -> Tensor:
    """(B, V, D) visual tokens of a batch: kept ones, or of its tiles."""
    if batch.visual is not None:
        return batch.visual
    assert batch.tiles is not None
    return model.encode_images(batch.tiles)


def perception_loss(model: DriveFineModel, batch: Batch) -> Tensor:
    """() cross-entropy per cell [nat] of the auxiliary bird's-eye grid, which only the images can tell.

    Raises:
      ValueError: the batch has no grids, or the model no head for them.
    """
    if batch.perception is None:
        raise ValueError(
            "batch.perception must hold bird's-eye grids, got none: the model's configuration has none either"
        )
    logits = model.perception_logits(visual_of(model, batch))
    return F.binary_cross_entropy_with_logits(logits, batch.perception)


def generator_loss(
    model: DriveFineModel,
    batch: Batch,
    predict_ids: Tensor,
    generator: torch.Generator,
    pairs_per_scene: int = 1,
    noise: NoiseName = "bernoulli",
    loss_weight: LossWeightName = "uniform",
    label_smoothing_bins: float = 0.0,
    train_vision: bool = True,
) -> AnswerLoss:
    """Masked-diffusion loss with complementary masking (equation 1; masking and weights as LaViDa's).

    Every demonstration enters `pairs_per_scene` times as a pair of rows: masked on a random set of slots, and
    on all the others. Each slot is predicted once per pair, where it is masked. All rows of a scene share one
    prompt. An autoregressive model reads the demonstration itself instead and predicts each slot from those
    before it (teacher forcing).

    Args:
      model: the model.
      batch: B scenes.
      predict_ids: (P1,) instruction of the generation expert.
      generator: of the masks, on the CPU.
      pairs_per_scene: N.
      noise: how slots are masked.
      loss_weight: how slots are weighted.
      label_smoothing_bins: width of the targets [bins].
      train_vision: whether tower and projector get a gradient.
    """
    answer = batch.actions[:, None]  # (B, 1, L)
    rows = answer
    scored_row: Tensor | None = None
    weights: Tensor | None = None
    if not model.is_autoregressive:
        pairs = draw_pairs(batch.actions, pairs_per_scene, noise, loss_weight, generator)
        rows, scored_row, weights = mask_actions(answer, pairs.rows), pairs.scored_row, pairs.weights
    with torch.set_grad_enabled(torch.is_grad_enabled() and train_vision):
        visual = visual_of(model, batch)
    logits = model(
        None,
        batch.context_ids,
        predict_ids,
        rows,
        context_lengths=batch.context_lengths,
        visual=visual,
        scored_row=scored_row,
    )
    return answer_cross_entropy(logits, answer, weights, label_smoothing_bins)


def noise_loss(
    model: DriveFineModel,
    batch: Batch,
    predict_ids: Tensor,
    generator: torch.Generator,
    num_noises: int = 1,
    train_vision: bool = True,
    train_language: bool = True,
) -> NoiseLoss:
    """The diffusion head's loss: mean squared error of the noise in noised demonstrations (`model.md` 5.4).

    Args:
      model: with a diffusion head.
      batch: B scenes.
      predict_ids: (P1,) instruction.
      generator: of times and noise, on the CPU.
      num_noises: N, noised trajectories per scene; they share one prompt.
      train_vision: whether tower and projector get a gradient.
      train_language: whether the language model does.
    """
    assert batch.status is not None
    with torch.set_grad_enabled(torch.is_grad_enabled() and train_vision):
        visual = visual_of(model, batch)
    with torch.set_grad_enabled(torch.is_grad_enabled() and train_language):
        prompt = model.prompt_states(batch.context_ids, predict_ids, batch.context_lengths, visual)
    clean = torch.from_numpy(normalise(batch.poses)).float().to(visual.device)[:, None]  # (B, 1, 8, 3)
    lead = (len(clean), num_noises)
    times = torch.randint(NUM_TIMES, lead, generator=generator).to(visual.device)
    noise = torch.randn(*lead, *clean.shape[2:], generator=generator).to(visual.device)
    predicted = model.predict_noise(prompt, add_noise(clean, noise, times), times, batch.status)
    return NoiseLoss(F.mse_loss(predicted, noise))


def text_loss(
    model: DriveFineModel,
    batch: TextBatch,
    answer_ids: Tensor,
    generator: torch.Generator,
    noise: NoiseName = "bernoulli",
    loss_weight: LossWeightName = "uniform",
    train_vision: bool = True,
) -> TextLoss:
    """The same loss on answers in words: base vocabulary, one complementary pair per question.

    The mean runs over all slots, the end of the turn and what fills the answer up included (`questions.py`).

    Args:
      model: the model, a masked one; its text head must learn too, see `train_text_head`.
      batch: B questions with answers of L slots.
      answer_ids: (P1,) what closes a question.
      generator: of the masks, on the CPU.
      noise: how slots are masked.
      loss_weight: how slots are weighted.
      train_vision: whether tower and projector get a gradient.
    """
    pairs = draw_pairs(batch.answer_ids, 1, noise, loss_weight, generator)
    answer = batch.answer_ids[:, None]  # (B, 1, L)
    with torch.set_grad_enabled(torch.is_grad_enabled() and train_vision):
        visual = visual_of(model, batch)
    prompt = model.prefill(
        None, batch.context_ids, answer_ids, context_lengths=batch.context_lengths, visual=visual
    )
    logits = model.text_logits(prompt, mask_actions(answer, pairs.rows), pairs.scored_row)
    terms = -logits.log_probs(answer)
    total = terms.mean() if pairs.weights is None else (terms * pairs.weights).mean()
    return TextLoss(total, terms.detach().mean())


class MaskedPairs(NamedTuple):
    """Complementary pairs of masks: N per answer of L slots, B answers."""

    rows: Tensor
    """(B, 2 N, L) True where masked."""
    scored_row: Tensor
    """(B, N, L) which row of its pair masks a slot."""
    weights: Tensor | None
    """(B, N, L) of the slots' terms, None: all 1."""


def draw_pairs(
    answers: Tensor, num_pairs: int, noise: NoiseName, loss_weight: LossWeightName, generator: torch.Generator
) -> MaskedPairs:
    """Masks for answers (B, L), from a generator on the CPU; on the answers' device."""
    batch_size, length = answers.shape
    ratios = sample_mask_ratios(batch_size * num_pairs, generator)  # (B N,)
    is_masked = sample_masks(ratios, length, noise, generator).to(answers.device)  # (B N, L)
    weights = masked_pair_weights(is_masked, ratios.to(answers.device), loss_weight)
    by_answer = (batch_size, -1, length)
    return MaskedPairs(
        complementary_rows(is_masked).reshape(by_answer),
        pair_scored_row(is_masked).reshape(by_answer),
        None if weights is None else weights.reshape(by_answer),
    )


def sft_loss(
    model: DriveFineModel,
    parts: Sequence[Batch | TextBatch],
    instructions: Instructions,
    generator: torch.Generator,
    config: GeneratorConfig,
) -> MixedLoss:
    """The generator's loss of one step: mean over its examples, trajectories and questions in words alike.

    Args:
      model: the model.
      parts: of the step's batch, on the model's device.
      instructions: of all tasks.
      generator: of the masks, on the CPU.
      config: masking, weights, smoothing.
    """
    losses: list[AnswerLoss | TextLoss | NoiseLoss] = []
    for part in parts:
        if isinstance(part, Batch) and model.pose_head is not None:
            losses.append(
                noise_loss(
                    model,
                    part,
                    instructions.predict,
                    generator,
                    config.pairs_per_scene,
                    config.train_vision,
                    config.train_language,
                )
            )
        elif isinstance(part, TextBatch):
            losses.append(
                text_loss(
                    model,
                    part,
                    instructions.answer,
                    generator,
                    config.noise,
                    config.loss_weight,
                    config.train_vision,
                )
            )
        else:
            losses.append(
                generator_loss(
                    model,
                    part,
                    instructions.predict,
                    generator,
                    config.pairs_per_scene,
                    config.noise,
                    config.loss_weight,
                    config.label_smoothing_bins,
                    config.train_vision,
                )
            )
    return mean_over_examples(parts, losses)


def mean_over_examples(
    parts: Sequence[Batch | TextBatch], losses: Sequence[AnswerLoss | TextLoss | NoiseLoss]
) -> MixedLoss:
    """Joins the losses of a step's parts, each a mean over its own examples."""
    counts = [len(part.context_ids) for part in parts]
    total = torch.stack(
        [loss.total * (count / sum(counts)) for loss, count in zip(losses, counts, strict=True)]
    ).sum()
    values: dict[str, list[tuple[float, int]]] = {}
    num_cut = 0
    for part, loss, count in zip(parts, losses, counts, strict=True):
        if isinstance(loss, TextLoss):
            named = {"text_nll": loss.nll.item()}
        elif isinstance(loss, NoiseLoss):
            named = {"noise_mse": loss.total.item()}
        else:
            named = {"spatial_nll": loss.spatial_nll.item(), "heading_nll": loss.heading_nll.item()}
        for name, value in named.items():
            values.setdefault(name, []).append((value, count))
        num_cut += part.num_cut if isinstance(part, TextBatch) else 0
    scalars = {
        name: sum(value * count for value, count in entries) / sum(count for _, count in entries)
        for name, entries in values.items()
    }
    if num_cut:
        scalars["num_cut_answers"] = float(num_cut)
    return MixedLoss(total, scalars)


def refiner_loss(
    model: DriveFineModel,
    batch: Batch,
    instructions: Instructions,
    tokenizer: ActionTokenizer,
    config: RefinerConfig,
    generator: torch.Generator,
) -> AnswerLoss:
    """Cross-entropy of the refinement expert on all 24 slots, given spoilt demonstrations (`corruptions`).

    Own samples are decoded here, by the generation expert as it is, over the same encoded context that the
    refiner reads. The gradient reaches the refinement blocks (or the MLP refiner) and nothing else.

    Args:
      model: the model.
      batch: B scenes.
      instructions: of both tasks.
      tokenizer: of the action vocabulary.
      config: shares, temperatures and number of rows.
      generator: of shares, samples and corruptions, on the CPU.
    """
    device = batch.actions.device
    with torch.no_grad():
        visual = visual_of(model, batch)
        context = model.encode_context(None, batch.context_ids, batch.context_lengths, visual)
    rows = spoilt_answers(model, batch, context, instructions.predict, tokenizer, config, generator).to(
        device
    )
    logits = refiner_logits(model, context, instructions.refine, rows)
    return answer_cross_entropy(
        logits, batch.actions[:, None], label_smoothing_bins=config.label_smoothing_bins
    )


@torch.no_grad()
def spoilt_answers(
    model: DriveFineModel,
    batch: Batch,
    context: ContextCache,
    predict_ids: Tensor,
    tokenizer: ActionTokenizer,
    config: RefinerConfig,
    generator: torch.Generator,
) -> Tensor:
    """(B, R, L) action ids, none masked: the refiner's inputs, by the shares of `config`.

    Args:
      model: decodes own samples.
      batch: B scenes.
      context: the batch's encoded context.
      predict_ids: (P1,) instruction of the generation expert.
      tokenizer: of the action vocabulary.
      config: shares, temperatures, R.
      generator: random numbers, on the CPU.
    """
    num_scenes, num_rows = len(batch.actions), config.rows_per_scene
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    kinds = np.stack([draw_corruptions(num_rows, config.shares, rng) for _ in range(num_scenes)])  # (B, R)
    actions = np.repeat(batch.actions.cpu().numpy()[:, None], num_rows, axis=1)  # (B, R, L), identity
    poses = np.repeat(batch.poses[:, None], num_rows, axis=1)  # (B, R, 8, 3)
    for kind, spoil in ((Corruption.OUTLIER, displace_numbers), (Corruption.DRIFT, drift)):
        is_kind = kinds == kind
        if is_kind.any():
            actions[is_kind] = tokenizer.encode(spoil(poses[is_kind], rng))
    is_own = kinds == Corruption.OWN_SAMPLE
    num_samples = int(is_own.sum(axis=1).max())  # of the scene that needs most; what is over is not used
    if num_samples:
        temperature = float(rng.uniform(config.min_temperature, config.max_temperature))
        options = DecodingOptions(
            num_steps=config.num_denoising_steps,
            temperature=temperature,
            num_samples=num_samples,
            refine=False,
        )
        prompt = model.append_instruction(context, predict_ids)
        device = batch.actions.device
        device_generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        trace = decode(
            lambda answer: model.answer_logits(prompt, answer), num_scenes, options, device, device_generator
        )
        is_taken = np.arange(num_samples) < is_own.sum(axis=1, keepdims=True)  # (B, num_samples)
        actions[is_own] = trace.actions.cpu().numpy()[is_taken]
    return torch.from_numpy(actions)
