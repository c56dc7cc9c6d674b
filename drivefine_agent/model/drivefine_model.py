"""DriveFine: vision tower, projector, block-MoE language model, action heads; prompt cache and answers.

Use, for scenes with equal prompts but for their content:

    context = model.encode_context(tiles, context_ids)                          # once per scene
    prompt = model.append_instruction(context, predict_ids)                     # once per task
    logits = model.answer_logits(prompt, actions)                               # per denoising step; (B, R,
    24) ids prompt = model.append_instruction(context, refine_ids, expert="refinement")
    logits = model.answer_logits(prompt, actions)

`forward` is the same in one call, for training under data-parallel wrappers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from drivefine_agent.actions import MASKED
from drivefine_agent.answer import AnswerLogits, OpenSlotLogits, TextLogits
from drivefine_agent.constants import NUM_POSE_FIELDS
from drivefine_agent.errors import DataError
from drivefine_agent.model.backbone.attention import AttentionName
from drivefine_agent.model.backbone.block import RMSNorm
from drivefine_agent.model.backbone.block_moe import BlockMoE, segment_mask
from drivefine_agent.model.backbone.cache import ContextCache, PromptCache
from drivefine_agent.model.choices import IMAGE_PLACEHOLDER, Expert
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.heads import ActionTable, Embeddings, Heads, OrdinalActionTable
from drivefine_agent.model.initialisation import ordinal_rows
from drivefine_agent.model.mlp_refiner import MLPRefiner
from drivefine_agent.model.perception_head import PerceptionHead
from drivefine_agent.model.pose_head import PoseHead, PromptStates
from drivefine_agent.model.vision import VisionEncoder, VisualProjector


class DriveFineModel(PreTrainedModel):
    """See the module's doc-string. Shapes: B scenes, R answer rows per scene, L slots (24), D width."""

    config_class = DriveFineConfig
    config: DriveFineConfig
    base_model_prefix = ""
    main_input_name = "tiles"
    _no_split_modules = ["Block", "SiglipEncoderLayer"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: DriveFineConfig) -> None:
        super().__init__(config)
        self.vision = VisionEncoder(config)
        self.projector = VisualProjector(config)
        self.embeddings = Embeddings(config)
        self.backbone = BlockMoE(config.text_config, config.n_refine)
        self.heads = Heads(config)
        self.perception = PerceptionHead(config) if config.perception_rows > 0 else None
        self.pose_head = PoseHead(config) if config.decoder_type == "diffusion_head" else None
        self.mlp_refiner = MLPRefiner(config) if config.mlp_refiner_width > 0 else None
        self.post_init()
        self.backbone.copy_generation_to_refinement()
        self._freeze_idle_parameters()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but a checkpoint with tensors too few or too many is refused.

        Raises:
          DataError: naming them; transformers would start the missing ones at random.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        for kind in ("missing", "unexpected"):
            if names := sorted(info[f"{kind}_keys"]):
                raise DataError(
                    f"a checkpoint must hold the model's tensors, got {kind} ones in {args[0]}: "
                    f"{', '.join(names)}; fetch it again, or take its own configuration"
                )
        model._freeze_idle_parameters()  # loading replaces the parameters
        return (model, info) if wants_info else model

    def _freeze_idle_parameters(self) -> None:
        """Parameters that checkpoints have but no output depends on: an optimiser must not wait for them."""
        self.vision.tower.post_layernorm.requires_grad_(False)
        self.heads.lm_head.requires_grad_(not self.config.slot_restricted)
        if self.pose_head is not None:  # no answer in tokens: neither their head nor their places
            self.heads.requires_grad_(False)
            if self.embeddings.answer_positions is not None:
                self.embeddings.answer_positions.requires_grad_(False)

    @property
    def is_autoregressive(self) -> bool:
        """Whether a slot is predicted from the slots before it, `actions` in the answer's place."""
        return self.config.decoder_type == "autoregressive"

    def encode_images(self, tiles: Tensor) -> Tensor:
        """(B, num_visual_tokens, D) of (B, T, S, S, 3) uint8 tiles; reusable while vision is frozen."""
        expected = (self.config.tiles.num_tiles, self.config.tiles.size_px, self.config.tiles.size_px, 3)
        if tiles.ndim != 5 or tuple(tiles.shape[1:]) != expected or tiles.dtype != torch.uint8:
            raise ValueError(
                f"expected tiles (B, {expected}) of uint8, got {tuple(tiles.shape)} of {tiles.dtype}"
            )
        return self.projector(self.vision(tiles))

    def perception_logits(self, visual: Tensor) -> Tensor:
        """(B, channels, rows, cols) logits of the auxiliary bird's-eye grid, from `encode_images`.

        Raises:
          ValueError: the configuration has no grid.
        """
        if self.perception is None:
            raise ValueError("this model has no auxiliary head: set perception_rows and perception_cols")
        return self.perception(visual)

    def embed_context(self, context_ids: Tensor, visual: Tensor | None) -> Tensor:
        """(B, P0, D) embeddings of context ids with the visual tokens in the placeholder's place.

        Raises:
          ValueError: unless every row has the placeholder in the same single column (or none, without an
            image).
        """
        is_image = context_ids == IMAGE_PLACEHOLDER
        columns = is_image.any(dim=0).nonzero().flatten().tolist()
        if visual is None:
            if columns:
                raise ValueError(
                    "tiles must be given, as the context_ids hold an image placeholder, got none"
                )
            return self.embeddings.context(context_ids)
        if len(columns) != 1 or not bool(is_image[:, columns[0]].all()):
            raise ValueError(
                f"every context must hold one image placeholder ({IMAGE_PLACEHOLDER}) in the same column, "
                f"got columns {columns}"
            )
        embedded = self.embeddings.context(context_ids.masked_fill(is_image, 0))
        column = columns[0]
        return torch.cat([embedded[:, :column], visual.to(embedded.dtype), embedded[:, column + 1 :]], dim=1)

    def encode_context(
        self,
        tiles: Tensor | None,
        context_ids: Tensor,
        context_lengths: Tensor | None = None,
        visual: Tensor | None = None,
    ) -> ContextCache:
        """Image, system turn, history and command through the shared blocks.

        Args:
          tiles: (B, T, S, S, 3) uint8 image tiles; None with `visual`, or for a context without an image.
          context_ids: (B, C) token ids, right-padded where they differ in length, with one image placeholder.
          context_lengths: (B,) lengths in ids; None: nothing is padded, and no attention mask is used.
          visual: (B, num_visual_tokens, D) from `encode_images`, in place of `tiles`.
        """
        if visual is None and tiles is not None:
            visual = self.encode_images(tiles)
        lengths = context_lengths
        if lengths is not None and visual is not None:
            lengths = lengths + visual.shape[1] - 1
        return self.backbone.encode_context(self.embed_context(context_ids, visual), lengths)

    def append_instruction(
        self, context: ContextCache, instruction_ids: Tensor, expert: Expert = "generation"
    ) -> PromptCache:
        """Completes the prompt for one task.

        Args:
          context: from `encode_context`; used by both tasks.
          instruction_ids: (P1,) or (B, P1) token ids of the instruction and the reply's header.
          expert: whose answers will follow.
        """
        embedded = self.embeddings(instruction_ids)
        if embedded.ndim == 2:
            embedded = embedded.expand(context.hidden.shape[0], -1, -1)
        return self.backbone.append_instruction(context, embedded, expert)

    def prefill(
        self,
        tiles: Tensor | None,
        context_ids: Tensor,
        instruction_ids: Tensor,
        expert: Expert = "generation",
        context_lengths: Tensor | None = None,
        visual: Tensor | None = None,
    ) -> PromptCache:
        """`encode_context`, then `append_instruction`; nothing but its own blocks trains for the refiner."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and expert != "refinement"):
            context = self.encode_context(tiles, context_ids, context_lengths, visual)
        return self.append_instruction(context, instruction_ids, expert)

    def prompt_states(
        self,
        context_ids: Tensor,
        instruction_ids: Tensor,
        context_lengths: Tensor | None = None,
        visual: Tensor | None = None,
    ) -> PromptStates:
        """Last hidden states of the whole prompt in its generation expert's path; arguments as in `prefill`.

        Context and instruction see what they see in `prefill`, so that a language model that was trained
        there can be used here as it is.
        """
        context = self.embed_context(context_ids, visual)
        instruction = self.embeddings(instruction_ids).expand(len(context), -1, -1)
        lengths = context_lengths
        if lengths is not None:
            lengths = lengths + context.shape[1] - context_ids.shape[1]
        return PromptStates(*self.backbone.prompt_states(context, instruction, lengths))

    def predict_noise(self, prompt: PromptStates, noisy: Tensor, times: Tensor, status: Tensor) -> Tensor:
        """(B, N, 8, 3) the noise in trajectories, by the diffusion head; arguments as of `PoseHead`.

        Raises:
          ValueError: the model has no diffusion head.
        """
        if self.pose_head is None:
            raise ValueError(
                f"only a model with decoder_type 'diffusion_head' has one, got {self.config.decoder_type!r}"
            )
        return self.pose_head(prompt, noisy, times, status)

    def answer_logits(
        self, prompt: PromptCache, actions: Tensor, scored_row: Tensor | None = None
    ) -> AnswerLogits:
        """Logits of answer rows over a cached prompt.

        Args:
          prompt: from `append_instruction` or `prefill`; its expert answers.
          actions: (B, R, L) action ids, `MASKED` where the slot holds the mask token. An autoregressive model
            reads the complete answer and gives each slot's logits given the slots before it.
          scored_row: (B, N, L) optional: R = N J rows are N answers of J rows each, and slot l of answer n is
            only wanted from its row `scored_row[b, n, l]` in 0 .. J - 1. Saves the head on the others.

        Returns:
          Logits with leading axes (B, R), or (B, N) with `scored_row`.
        """
        return self.logits_of(self.answer_hidden(prompt, actions, scored_row), prompt.expert)

    def open_slot_logits(self, prompt: PromptCache, actions: Tensor) -> AnswerLogits | OpenSlotLogits:
        """Logits of the masked slots of answer rows, for decoding.

        Args:
          prompt: as in `answer_logits`.
          actions: (B, R, L) action ids, `MASKED` where the slot is open.

        Returns:
          Logits of all slots where all are open, or where the softmax runs over the whole vocabulary.
        """
        hidden = self.answer_hidden(prompt, actions)
        is_open = actions == MASKED
        if not self.config.slot_restricted or bool(is_open.all()):
            return self.logits_of(hidden, prompt.expert)
        is_heading = torch.arange(actions.shape[-1], device=actions.device) % NUM_POSE_FIELDS == 2
        table = self.heads.action_head
        return OpenSlotLogits(
            table.spatial_scores(hidden[is_open & ~is_heading]),
            table.heading_scores(hidden[is_open & is_heading]),
            is_open,
        )

    def answer_hidden(self, prompt: PromptCache, actions: Tensor, scored_row: Tensor | None = None) -> Tensor:
        """(B, R, L, D) normed hidden states of answer rows, (B, N, L, D) with `scored_row`."""
        if actions.ndim != 3 or actions.shape[0] != prompt.batch_size:
            raise ValueError(
                f"expected actions (B, R, L) with B = {prompt.batch_size} cached prompts, "
                f"got {tuple(actions.shape)}"
            )
        is_refinement = prompt.expert == "refinement"
        if self.is_autoregressive:
            actions = shifted(actions)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_refinement):
            embedded = self.embeddings.answer(actions)
        return self._scored(self.backbone.answer(prompt, embedded, self.is_autoregressive), scored_row)

    def text_logits(
        self, prompt: PromptCache, token_ids: Tensor, scored_row: Tensor | None = None
    ) -> TextLogits:
        """Logits of answers in words over a cached prompt; the generation expert writes them.

        Args:
          prompt: from `append_instruction`, of the generation expert.
          token_ids: (B, R, L) ids of the base vocabulary, `MASKED` where a slot holds the mask token; any L.
          scored_row: as in `answer_logits`.

        Raises:
          ValueError: the prompt is the refinement expert's, which knows trajectories only.
        """
        if prompt.expert != "generation":
            raise ValueError(f"answers in words need the expert 'generation', got {prompt.expert!r}")
        hidden = self.backbone.answer(prompt, self.embeddings.text_answer(token_ids))
        return TextLogits(self.heads.text(self._scored(hidden, scored_row)))

    def train_text_head(self) -> None:
        """Lets the text head learn too: for training on answers in words, where it is not idle."""
        self.heads.lm_head.requires_grad_(True)

    def mlp_refined_logits(self, anchors: Tensor) -> AnswerLogits:
        """What the MLP refiner makes of complete answers (B, R, L); nothing but itself gets a gradient.

        Raises:
          ValueError: the model has none.
        """
        if self.mlp_refiner is None:
            raise ValueError("this model has no MLP refiner: set mlp_refiner_width")
        with torch.no_grad():
            embedded = self.embeddings.answer(anchors)
        return self.logits_of(self.mlp_refiner(embedded), "refinement")

    @staticmethod
    def _scored(hidden: Tensor, scored_row: Tensor | None) -> Tensor:
        """(B, N, L, D) of the rows to score, see `answer_logits`; all rows (B, R, L, D) without them."""
        if scored_row is None:
            return hidden
        by_answer = hidden.unflatten(1, (scored_row.shape[1], -1))  # (B, N, J, L, D)
        index = scored_row[:, :, None, :, None].expand(-1, -1, 1, -1, hidden.shape[-1])
        return by_answer.gather(2, index).squeeze(2)

    def logits_of(self, hidden: Tensor, expert: Expert = "generation") -> AnswerLogits:
        """Logits of hidden states (..., L, D); the heads are frozen for the refinement expert."""
        return self.heads(hidden, frozen=expert == "refinement")

    def forward(
        self,
        tiles: Tensor | None,
        context_ids: Tensor,
        instruction_ids: Tensor,
        actions: Tensor,
        expert: Expert = "generation",
        context_lengths: Tensor | None = None,
        visual: Tensor | None = None,
        scored_row: Tensor | None = None,
    ) -> AnswerLogits:
        """Prompt and answer rows in one call; arguments as in `prefill` and `answer_logits`."""
        prompt = self.prefill(tiles, context_ids, instruction_ids, expert, context_lengths, visual)
        return self.answer_logits(prompt, actions, scored_row)

    def one_pass_logits(
        self,
        tiles: Tensor | None,
        context_ids: Tensor,
        instruction_ids: Tensor,
        actions: Tensor,
        expert: Expert = "generation",
        context_lengths: Tensor | None = None,
        visual: Tensor | None = None,
    ) -> AnswerLogits:
        """The same as `forward` in one sequence with one explicit mask, nothing cached and nothing isolated.

        The yardstick of the cache, in tests and in the benchmark of cached against uncached decoding.
        """
        if visual is None and tiles is not None:
            visual = self.encode_images(tiles)
        context = self.embed_context(context_ids, visual)
        batch_size, num_rows, length = actions.shape
        if self.is_autoregressive:
            actions = shifted(actions)
        instruction = self.embeddings(instruction_ids)
        instruction = instruction.expand(batch_size, *instruction.shape[-2:])
        rows = self.embeddings.answer(actions).flatten(1, 2)
        device = context.device
        num_context, num_instruction = context.shape[1], instruction.shape[1]
        lengths = torch.full((batch_size, 1), num_context, device=device)
        if context_lengths is not None:
            lengths = context_lengths[:, None] + num_context - context_ids.shape[1]
        context_positions = torch.arange(num_context, device=device)[None]
        instruction_positions = lengths + torch.arange(num_instruction, device=device)
        row_positions = lengths + num_instruction + torch.arange(length, device=device).repeat(num_rows)
        positions = torch.cat(
            [context_positions.expand(batch_size, -1), instruction_positions, row_positions], dim=1
        )
        segments = torch.cat(
            [
                torch.where(context_positions < lengths, 0, -1),
                torch.ones_like(instruction_positions),
                torch.full_like(row_positions, 2),
            ],
            dim=1,
        )
        row_numbers = torch.zeros_like(segments)
        row_numbers[:, -num_rows * length :] = torch.arange(num_rows, device=device).repeat_interleave(length)
        mask = segment_mask(segments, row_numbers)
        if self.is_autoregressive:  # rows lie one after the other, and do not see each other
            mask[:, -num_rows * length :, -num_rows * length :].tril_()
        hidden = self.backbone.one_pass(
            torch.cat([context, instruction, rows], dim=1), positions, mask, expert
        )
        return self.heads(hidden[:, -num_rows * length :].unflatten(1, (num_rows, length)))

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        """Trainable parameters of one part of the model, for optimiser groups.

        The parts are disjoint and together hold every trainable parameter.

        Args:
          part: `vision` (tower), `projector`, `perception` (the auxiliary head; may be empty), `language`
            (text embeddings and head, shared and generation blocks, norm), `action` (both action tables),
            `refinement` (the refinement expert's blocks, or the MLP refiner), `pose_head` (the diffusion
            head; may be empty).

        Raises:
          ValueError: for an unknown part.
        """
        prefixes = {
            "vision": ("vision.",),
            "projector": ("projector.",),
            "perception": ("perception.",),
            "language": (
                "embeddings.embed_tokens.",
                "embeddings.context_positions",
                "embeddings.answer_positions",
                "backbone.layers.",
                "backbone.norm.",
                "heads.lm_head.",
            ),
            "action": ("embeddings.action_embed.", "heads.action_head."),
            "refinement": ("backbone.refine_layers.", "mlp_refiner."),
            "pose_head": ("pose_head.",),
        }
        if part not in prefixes:
            raise ValueError(f"unknown part {part!r}: choose one of {', '.join(prefixes)}")
        return [
            p for name, p in self.named_parameters() if name.startswith(prefixes[part]) and p.requires_grad
        ]

    def checkpoint_blocks(self, enabled: bool = True) -> None:
        """Recomputes the language model's blocks in the backward pass instead of keeping activations."""
        self.backbone.checkpoint_blocks = enabled

    def use_attention(self, attention: AttentionName) -> None:
        """Chooses the language model's attention kernel: `sdpa`, `flash` or `flex`; the results are the same.

        Raises:
          ValueError: for an unknown kernel.
        """
        self.backbone.use_attention(attention)

    def initialise_action_rows(
        self, reference_ids: list[int] | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Sets both action tables ordinally around existing rows, each with its own mean and spread.

        Args:
          reference_ids: base rows whose mean the action rows start from, e.g. those of the digits, dot and
            minus; None: all rows.
          generator: of the random mixing.

        Raises:
          ValueError: the model's action rows are no parameters of their own (`action_rows="ordinal"`).
        """
        for table, base in (
            (self.embeddings.action_embed, self.embeddings.embed_tokens.weight),
            (self.heads.action_head, self.heads.lm_head.weight),
        ):
            if not isinstance(table, ActionTable):
                raise ValueError(
                    "only free action rows can start from existing ones, "
                    f"got action_rows={self.config.action_rows!r}"
                )
            reference = base.detach() if reference_ids is None else base.detach()[reference_ids]
            std = self.config.action_embedding_std or float(base.detach().float().std())
            with torch.no_grad():
                table.weight.copy_(ordinal_rows(table.spec, reference.float().mean(dim=0), std, generator))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.text_config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, mean=0.0, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, ActionTable):
            if module.weight.device.type != "meta":
                mean = torch.zeros(module.weight.shape[1])
                init.copy_(module.weight, ordinal_rows(module.spec, mean, self.config.action_std))
        elif isinstance(module, OrdinalActionTable):
            init.orthogonal_(module.spatial)
            init.orthogonal_(module.heading)
        elif isinstance(module, PoseHead):
            module.initialise()
        elif isinstance(module, (VisualProjector, Embeddings)):
            for parameter in module.parameters(recurse=False):  # newline and learned places
                is_visual_place = isinstance(module, VisualProjector) and parameter is module.positions
                init.normal_(parameter, mean=0.0, std=1.0 if is_visual_place else std)


def shifted(actions: Tensor) -> Tensor:
    """(..., L) the action before each slot; before the first one `MASKED`, whose token starts the answer."""
    return torch.cat([torch.full_like(actions[..., :1], MASKED), actions[..., :-1]], dim=-1)


def count_parameters(model: nn.Module) -> dict[str, Any]:
    """Number of parameters by top-level part, and of the refinement expert alone."""
    counts: dict[str, Any] = {
        name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()
    }
    counts["refinement"] = sum(p.numel() for n, p in model.named_parameters() if "refine_layers" in n)
    counts["total"] = sum(p.numel() for p in model.parameters())
    return counts
