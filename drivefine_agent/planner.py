"""From observations to trajectories: the one path that the agent, evaluation and RL share."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drivefine_agent.answer import AnswerLogits, OpenSlotLogits, Randomness
from drivefine_agent.autoregressive import decode_autoregressively
from drivefine_agent.data.types import Observation
from drivefine_agent.diffusion.decoding import DecodingOptions, DenoisingTrace, decode, read_out
from drivefine_agent.errors import DataError
from drivefine_agent.model.backbone.attention import AttentionName
from drivefine_agent.model.backbone.cache import ContextCache, PromptCache
from drivefine_agent.model.quantization import QuantizationName, quantize
from drivefine_agent.model.text_tokenizer import END_OF_TEXT, END_OF_TURN, TextTokenizer
from drivefine_agent.model.tiles import tile_image
from drivefine_agent.prompt import PromptBuilder, pad_contexts
from drivefine_agent.tokenizer import ActionTokenizer

if TYPE_CHECKING:
    from drivefine_agent.model.config import DriveFineConfig
    from drivefine_agent.model.drivefine_model import DriveFineModel


COMPILED_LENGTHS = 64
"""Contexts are padded to a multiple of this before a compiled step, which is compiled for every length."""

CandidateScorer = Callable[[ContextCache, Tensor], Tensor]
"""Cached context and complete answers (B, N, L) -> (B, N, K) predicted sub-scores in [0, 1]."""

AnswerStep = Callable[[PromptCache, Tensor], AnswerLogits | OpenSlotLogits]
"""Cached prompt and answer rows -> logits; of the generation expert at least those of the masked slots."""


class PlanTokens(NamedTuple):
    """A batch of plans as action ids, on the model's device. B scenes, N samples, L slots."""

    trace: DenoisingTrace
    """What the generation expert did."""
    refined_actions: Tensor | None
    """(B, N, L) answers of the refinement expert; None where it did not run."""
    predicted: Tensor | None = None
    """(B, N, K) sub-scores that a scorer predicts of the final answers; None without one."""


@dataclass(frozen=True)
class PlanResult:
    """A batch of plans. B scenes, N samples per scene."""

    generated: NDArray[np.float64]
    """(B, N, 8, 3) x [m], y [m], heading [rad], ego frame, 0.5 s apart: what the generation expert wrote."""
    refined: NDArray[np.float64] | None
    """(B, N, 8, 3) after the refinement expert; None where it did not run (n_refine = 0 or switched off)."""
    generated_actions: NDArray[np.int64]
    """(B, N, 24) action ids."""
    refined_actions: NDArray[np.int64] | None
    """(B, N, 24) action ids, or None."""
    step_map: NDArray[np.int64]
    """(B, N, 24) denoising step in which each slot was committed."""
    generated_log_probs: NDArray[np.float32]
    """(B, N, 24) log-probability of each slot's action when it was committed."""
    num_clipped_inputs: NDArray[np.int64]
    """(B,) numbers of the prompt that lay outside the action tables."""
    predicted: NDArray[np.float64] | None = None
    """(B, N, K) sub-scores that a learned scorer predicts of the final plans; None without one."""

    @property
    def final(self) -> NDArray[np.float64]:
        """(B, N, 8, 3) what should be driven: the refined trajectories where there are any."""
        return self.generated if self.refined is None else self.refined


def plan_tokens(
    model: DriveFineModel,
    tiles: Tensor | None,
    context_ids: Tensor,
    predict_ids: Tensor,
    refine_ids: Tensor,
    options: DecodingOptions,
    context_lengths: Tensor | None = None,
    visual: Tensor | None = None,
    generator: Randomness = None,
    step: AnswerStep | None = None,
    scorer: CandidateScorer | None = None,
) -> PlanTokens:
    """Decodes a batch of prompts, then refines, without gradients. All samples of a scene share its prompt.

    Args:
      model: in any mode; there is no dropout.
      tiles: (B, T, S, S, 3) uint8, or None with `visual`.
      context_ids: (B, C) right-padded token ids.
      predict_ids: (P1,) instruction of the generation expert.
      refine_ids: (P1',) instruction of the refinement expert.
      options: how to decode.
      context_lengths: (B,), None when nothing is padded.
      visual: (B, V, D) visual tokens from `model.encode_images`.
      generator: for temperature > 0.
      step: in place of the model's own answer step, such as a `CompiledStep`.
      scorer: predicts the sub-scores of the final answers, from the same cached context.
    """
    with torch.no_grad():
        context = model.encode_context(tiles, context_ids, context_lengths, visual)
        trace = generate(model, context, predict_ids, options, generator, step)
        refined = None
        if options.refine and model.config.has_refiner:
            logits = refiner_logits(model, context, refine_ids, trace.actions, step)
            refined = read_out(logits, options, generator)
        final = trace.actions if refined is None else refined
        return PlanTokens(trace, refined, None if scorer is None else scorer(context, final))


def generate(
    model: DriveFineModel,
    context: ContextCache,
    predict_ids: Tensor,
    options: DecodingOptions,
    generator: Randomness = None,
    step: AnswerStep | None = None,
) -> DenoisingTrace:
    """What the generation expert writes: from all slots masked to complete answers, or from left to right.

    Raises:
      ValueError: the model writes no action tokens.
    """
    prompt = model.append_instruction(context, predict_ids)
    if model.config.decoder_type == "autoregressive":
        return decode_autoregressively(model, prompt, options, generator)
    if model.config.decoder_type != "masked":
        raise ValueError(
            "decoder_type must be masked or autoregressive to write actions, got "
            f"{model.config.decoder_type!r}"
        )
    answer_step = step or model.open_slot_logits
    return decode(
        lambda actions: answer_step(prompt, actions),
        len(context.hidden),
        options,
        context.hidden.device,
        generator,
    )


def refiner_logits(
    model: DriveFineModel,
    context: ContextCache,
    refine_ids: Tensor,
    anchors: Tensor,
    step: AnswerStep | None = None,
) -> AnswerLogits:
    """The refinement expert's 24 distributions for each complete answer (B, N, L), in one step."""
    if model.mlp_refiner is not None:
        return model.mlp_refined_logits(anchors)
    prompt = model.append_instruction(context, refine_ids, expert="refinement")
    logits = (step or model.answer_logits)(prompt, anchors)
    assert isinstance(logits, AnswerLogits), "the refinement expert answers in all slots"
    return logits


def scene_generators(
    seed: int, tiles: NDArray[np.uint8], contexts: Sequence[NDArray[np.int64]]
) -> list[torch.Generator]:
    """Random numbers that follow from a seed and from what the planner sees of each scene.

    So a scene's samples do not depend on the order of scenes, on the batch, or on which worker plans it,
    though NAVSIM tells an agent neither token nor time.

    Args:
      seed: of the run.
      tiles: (B, T, S, S, 3) images.
      contexts: B arrays (C_b,) of token ids, unpadded.
    """
    generators = []
    for image, ids in zip(tiles, contexts, strict=True):
        digest = hashlib.blake2b(f"{seed}/".encode(), digest_size=8)
        digest.update(np.ascontiguousarray(image).data)
        digest.update(np.ascontiguousarray(ids, dtype="<i8").data)
        generators.append(torch.Generator().manual_seed(int.from_bytes(digest.digest(), "big") >> 1))
    return generators


class Planner:
    """A model with its tokenizers, prompt format and decoding options."""

    def __init__(
        self,
        model: DriveFineModel,
        text_tokenizer: TextTokenizer,
        options: DecodingOptions | None = None,
        compile_step: bool = False,
    ) -> None:
        """A planner; with `compile_step` the answer step is compiled when first used, see `CompiledStep`."""
        if len(text_tokenizer) > model.config.base_vocab_size:
            raise ValueError(
                f"the text tokenizer has {len(text_tokenizer)} tokens, the model's base vocabulary only "
                f"{model.config.base_vocab_size} rows: they do not belong together"
            )
        self.model = model
        self.text_tokenizer = text_tokenizer
        self.options = options or DecodingOptions()
        self.prompts = PromptBuilder(model.config, text_tokenizer)
        self.action_tokenizer = ActionTokenizer(model.config.action_spec)
        self.step: AnswerStep | None = None
        if compile_step:
            from drivefine_agent.model.compiled_step import CompiledStep

            self.step = CompiledStep(model)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        options: DecodingOptions | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: AttentionName = "sdpa",
        quantization: QuantizationName = "none",
        compile_step: bool = False,
    ) -> Planner:
        """Loads what `save_pretrained` wrote.

        Args:
          folder: of the checkpoint.
          options: how to decode.
          device: where the model runs.
          dtype: of the weights.
          attention: kernel, see `model/backbone/attention.py`.
          quantization: of the blocks' weights, see `model/quantization.py`.
          compile_step: whether the answer step is compiled.

        Raises:
          DataError: if the folder has no configuration or tokenizer.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise DataError(
                f"no DriveFine checkpoint at {folder} (config.json is missing): "
                "give a folder that training wrote"
            )
        from drivefine_agent.model.drivefine_model import DriveFineModel

        tokenizer = TextTokenizer.from_file(folder)
        model = DriveFineModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
        model.to(torch.device(device)).use_attention(attention)
        quantize(model, quantization)
        return cls(model.eval(), tokenizer, options, compile_step)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes configuration, weights (safetensors) and text tokenizer into a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        self.text_tokenizer.save(folder)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def plan(
        self,
        observations: Sequence[Observation],
        options: DecodingOptions | None = None,
        seed: int | None = None,
        scorer: CandidateScorer | None = None,
    ) -> PlanResult:
        """Trajectories for a batch of observations.

        Args:
          observations: B of them, at least one.
          options: in place of the planner's own.
          seed: for temperature > 0, see `scene_generators`; None: torch's global generator.
          scorer: predicts the sub-scores of the plans.

        Raises:
          ValueError: if there are no observations, or one is malformed.
        """
        if len(observations) == 0:
            raise ValueError("observations must be at least one, got none")
        config: DriveFineConfig = self.model.config
        tiles = np.stack([tile_image(observation.image, config.tiles) for observation in observations])
        contexts = [self.prompts.context(observation) for observation in observations]
        pad_id = config.text_config.pad_token_id or 0
        multiple = COMPILED_LENGTHS if self.step is not None else 1
        context_ids, lengths = pad_contexts([context.ids for context in contexts], pad_id, multiple)
        generator = None
        if seed is not None:
            generator = scene_generators(seed, tiles, [context.ids for context in contexts])
        tokens = plan_tokens(
            self.model,
            self._tensor(tiles),
            self._tensor(context_ids),
            self._tensor(self.prompts.instruction("predict")),
            self._tensor(self.prompts.instruction("refine")),
            options or self.options,
            None if lengths is None else self._tensor(lengths),
            generator=generator,
            step=self.step,
            scorer=scorer,
        )
        return self.to_result(tokens, np.array([context.num_clipped for context in contexts], dtype=np.int64))

    @torch.no_grad()
    def answer(
        self,
        images: Sequence[NDArray[np.uint8]],
        questions: Sequence[str],
        num_slots: int = 64,
        num_steps: int | None = None,
    ) -> list[str]:
        """Answers in words to one question about each image, decoded greedily in order of confidence.

        Only a model whose training had questions in words (`data.sources` of kind recogdrive_qa) knows how.

        Args:
          images: B (H, W, 3) uint8 RGB.
          questions: B texts.
          num_slots: L, one of the answer lengths of training; holds the answer and its end.
          num_steps: denoising steps, 1 .. L; None: L, one token at a time.

        Returns:
          B texts, up to the end of the turn, or all L tokens where there is none.

        Raises:
          ValueError: no question, or not one per image.
        """
        if not questions or len(images) != len(questions):
            raise ValueError(
                f"answer needs one question per image, got {len(questions)} and {len(images)} images"
            )
        config: DriveFineConfig = self.model.config
        tiles = self._tensor(np.stack([tile_image(image, config.tiles) for image in images]))
        contexts = [self.prompts.question_context(question) for question in questions]
        ids, lengths = pad_contexts(contexts, config.text_config.pad_token_id or 0)
        prompt = self.model.prefill(
            tiles,
            self._tensor(ids),
            self._tensor(self.prompts.instruction("answer")),
            context_lengths=None if lengths is None else self._tensor(lengths),
        )
        options = DecodingOptions(num_steps=num_steps or num_slots, answer_length=num_slots, refine=False)
        trace = decode(
            lambda tokens: self.model.text_logits(prompt, tokens), len(questions), options, self.device
        )
        ends = {self.text_tokenizer.id_of(END_OF_TURN), self.text_tokenizer.id_of(END_OF_TEXT)}
        return [
            self.text_tokenizer.decode(itertools.takewhile(lambda token: token not in ends, row))
            for row in trace.actions[:, 0].tolist()
        ]

    def to_result(self, tokens: PlanTokens, num_clipped_inputs: NDArray[np.int64]) -> PlanResult:
        """Poses and numpy arrays of decoded tokens."""
        generated = tokens.trace.actions.cpu().numpy()
        refined = None if tokens.refined_actions is None else tokens.refined_actions.cpu().numpy()
        return PlanResult(
            generated=self.action_tokenizer.decode(generated),
            refined=None if refined is None else self.action_tokenizer.decode(refined),
            generated_actions=generated,
            refined_actions=refined,
            step_map=tokens.trace.step_map.cpu().numpy(),
            generated_log_probs=tokens.trace.log_probs.cpu().numpy(),
            num_clipped_inputs=num_clipped_inputs,
            predicted=None if tokens.predicted is None else tokens.predicted.double().cpu().numpy(),
        )

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device)
