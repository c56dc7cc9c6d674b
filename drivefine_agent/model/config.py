"""Everything that fixes the model's shape, its action vocabulary, its image grid and its prompt format.

The prompt format is here because a checkpoint only works with the prompt it was trained on.
"""

from __future__ import annotations

import math
from typing import Any, get_args

from transformers import LlamaConfig, PreTrainedConfig, SiglipVisionConfig

from drivefine_agent.actions import ActionSpec, ValueGrid
from drivefine_agent.model.choices import (
    DECODERS,
    ActionRows,
    DecoderName,
    PoseFormat,
    PromptType,
    PromptWording,
)
from drivefine_agent.model.tiles import TileFit, TileInterpolation, TileSpec

PERCEPTION_CHANNELS = 2
"""Of the auxiliary bird's-eye grid: drivable area; road users and objects."""


class DriveFineConfig(PreTrainedConfig):
    """Configuration of `DriveFineModel`. Presets: `llada_8b()`, `tiny()`, `debug()`.

    Args:
      text_config: the language model's blocks, embeddings and head (`LlamaConfig` or its dict). Its
        `vocab_size` is the base vocabulary; action ids lie above it.
      vision_config: the SigLIP tower (`SiglipVisionConfig` or its dict); its last layer's un-normed output is
        used.
      n_refine: number of blocks of the refinement expert, copies of the language model's last blocks; 0:
        none.
      mask_token_id: [M], a row of the base vocabulary.
      spatial_min_m, spatial_step_m, spatial_bins: table of x and y.
      heading_min_deg, heading_step_deg, heading_bins: table of headings; a full circle is periodic.
      tile_cols, tile_rows, tile_fit, tile_interpolation: image grid, see `TileSpec`; the tile's size is the
        tower's.
      pool_size: side of each tile's feature map after pooling; None: half the tower's, rounded up, as LaViDa.
      image_newline: whether a learned vector ends each row of the stitched feature map.
      learned_positions: whether learned vectors mark the place of each visual token, context token and answer
        slot. For small models trained from scratch: the 24 mask tokens are otherwise told apart by rotary
        attention alone, which takes long to learn. Checkpoints of LLaDA and LaViDa have none.
      perception_rows, perception_cols: size of the auxiliary bird's-eye grid that the visual tokens are made
        to predict in training, see `training/perception.py`; 0: none. For towers that start from scratch.
      slot_restricted: softmax over the slot's own table (True) or over the whole vocabulary, text included
        (False).
      action_rows: `free`, a row per action (the paper), or `ordinal`, rows that are a learned map of fixed
        Fourier features of the value. For small models trained from scratch on few scenes.
      action_embedding_std: of the action rows at initialisation; None: that of the existing embeddings.
      prompt_type: `base` (history and command) or `vel_and_acc` (also velocity and acceleration).
      pose_format: numbers in the prompt as `text` (the paper) or as `action_tokens` (one shared number
        representation for input and output, for small models).
      prompt_wording: `full` sentences and chat turns, or `short`, a handful of tokens.
      decoder_type: how a trajectory is written: `masked` diffusion over action tokens (DriveFine), or one of
        the baselines on the same prompt: `autoregressive`, the same tokens from left to right, or
        `diffusion_head`, poses in metres by a small diffusion transformer that reads the prompt's last
        hidden states. Baselines have no refinement expert.
      head_width, head_blocks, head_heads: size of that transformer.
      mlp_refiner_width: of a refiner that reads the answer's 24 embeddings alone, without prompt and
        attention, in place of the refinement expert's blocks (n_refine = 0); a control. 0: none.
    """

    model_type = "drivefine"
    sub_configs = {"text_config": LlamaConfig, "vision_config": SiglipVisionConfig}  # noqa: RUF012
    has_no_defaults_at_init = True  # earlier versions of transformers 5 call DriveFineConfig() to save one

    def __init__(
        self,
        text_config: LlamaConfig | dict[str, Any] | None = None,
        vision_config: SiglipVisionConfig | dict[str, Any] | None = None,
        n_refine: int = 4,
        mask_token_id: int = 126336,
        spatial_min_m: float = -100.0,
        spatial_step_m: float = 0.05,
        spatial_bins: int = 4000,
        heading_min_deg: float = -90.0,
        heading_step_deg: float = 0.1,
        heading_bins: int = 1800,
        tile_cols: int = 4,
        tile_rows: int = 2,
        tile_fit: TileFit = "resize",
        tile_interpolation: TileInterpolation = "bicubic",
        pool_size: int | None = None,
        image_newline: bool = True,
        learned_positions: bool = False,
        perception_rows: int = 0,
        perception_cols: int = 0,
        slot_restricted: bool = True,
        action_rows: ActionRows = "free",
        action_embedding_std: float | None = None,
        prompt_type: PromptType = "base",
        pose_format: PoseFormat = "text",
        prompt_wording: PromptWording = "full",
        decoder_type: DecoderName = "masked",
        head_width: int = 384,
        head_blocks: int = 16,
        head_heads: int = 8,
        mlp_refiner_width: int = 0,
        **kwargs: Any,
    ) -> None:
        self.text_config = (
            LlamaConfig(**text_config) if isinstance(text_config, dict) else text_config or LlamaConfig()
        )
        self.vision_config = (
            SiglipVisionConfig(**vision_config)
            if isinstance(vision_config, dict)
            else vision_config or SiglipVisionConfig()
        )
        self.n_refine = n_refine
        self.mask_token_id = mask_token_id
        self.spatial_min_m = spatial_min_m
        self.spatial_step_m = spatial_step_m
        self.spatial_bins = spatial_bins
        self.heading_min_deg = heading_min_deg
        self.heading_step_deg = heading_step_deg
        self.heading_bins = heading_bins
        self.tile_cols = tile_cols
        self.tile_rows = tile_rows
        self.tile_fit = tile_fit
        self.tile_interpolation = tile_interpolation
        self.pool_size = math.ceil(self.vision_grid / 2) if pool_size is None else pool_size
        self.image_newline = image_newline
        self.learned_positions = learned_positions
        self.perception_rows = perception_rows
        self.perception_cols = perception_cols
        self.slot_restricted = slot_restricted
        self.action_rows = action_rows
        self.action_embedding_std = action_embedding_std
        self.prompt_type = prompt_type
        self.pose_format = pose_format
        self.prompt_wording = prompt_wording
        self.decoder_type = decoder_type
        self.head_width = head_width
        self.head_blocks = head_blocks
        self.head_heads = head_heads
        self.mlp_refiner_width = mlp_refiner_width
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        layers = self.text_config.num_hidden_layers
        if not 0 <= self.n_refine <= layers:
            raise ValueError(f"n_refine must be in 0..{layers}, the number of blocks, got {self.n_refine}")
        if not 0 <= self.mask_token_id < self.base_vocab_size:
            raise ValueError(
                f"mask_token_id must be a row of the base vocabulary (0..{self.base_vocab_size - 1}), "
                f"got {self.mask_token_id}"
            )
        for name, value, known in (
            ("prompt_type", self.prompt_type, get_args(PromptType)),
            ("pose_format", self.pose_format, get_args(PoseFormat)),
            ("prompt_wording", self.prompt_wording, get_args(PromptWording)),
            ("action_rows", self.action_rows, get_args(ActionRows)),
            ("decoder_type", self.decoder_type, DECODERS),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
        if self.decoder_type != "masked" and self.n_refine > 0:
            raise ValueError(
                f"decoder_type {self.decoder_type!r} has no refinement expert: n_refine must be 0, "
                f"got {self.n_refine}"
            )
        if self.mlp_refiner_width < 0 or (
            self.mlp_refiner_width > 0 and (self.n_refine > 0 or self.decoder_type != "masked")
        ):
            raise ValueError(
                "mlp_refiner_width must not be negative, and is for masked decoding with n_refine = 0, got "
                f"{self.mlp_refiner_width} with decoder_type {self.decoder_type!r}, n_refine {self.n_refine}"
            )
        if self.decoder_type == "autoregressive" and not self.slot_restricted:
            raise ValueError(
                "decoder_type 'autoregressive' writes actions only, got no slot_restricted: set it"
            )
        if self.head_width % self.head_heads != 0 or self.head_blocks < 2:
            raise ValueError(
                "head_width must be a multiple of head_heads and head_blocks at least 2, "
                f"got {self.head_width}, {self.head_heads} and {self.head_blocks}"
            )
        if (self.perception_rows > 0) != (self.perception_cols > 0) or self.perception_rows < 0:
            raise ValueError(
                "perception_rows and perception_cols must both be positive, or both 0, "
                f"got {self.perception_rows} and {self.perception_cols}"
            )
        _ = self.tiles, self.action_spec  # their own checks

    @property
    def base_vocab_size(self) -> int:
        """Rows of the language model's own vocabulary; token id of action a is `base_vocab_size + a`."""
        return self.text_config.vocab_size

    @property
    def action_std(self) -> float:
        """Spread of new action rows that have no pretrained rows beside them."""
        return self.action_embedding_std or float(self.text_config.initializer_range)

    @property
    def has_refiner(self) -> bool:
        """Whether complete answers can be refined."""
        return self.n_refine > 0 or self.mlp_refiner_width > 0

    @property
    def num_shared_blocks(self) -> int:
        """S: blocks that both experts use."""
        return self.text_config.num_hidden_layers - self.n_refine

    @property
    def action_spec(self) -> ActionSpec:
        """The action vocabulary."""
        is_circle = abs(self.heading_step_deg * self.heading_bins - 360.0) < 1e-6
        return ActionSpec(
            ValueGrid(self.spatial_min_m, self.spatial_step_m, self.spatial_bins),
            ValueGrid(self.heading_min_deg, self.heading_step_deg, self.heading_bins, is_periodic=is_circle),
        )

    @property
    def _tile_size_px(self) -> int:
        return int(self.vision_config.image_size)  # type: ignore[arg-type]

    @property
    def tiles(self) -> TileSpec:
        """The image grid."""
        return TileSpec(
            self.tile_cols, self.tile_rows, self._tile_size_px, self.tile_fit, self.tile_interpolation
        )

    @property
    def vision_grid(self) -> int:
        """Side of the vision tower's feature map of one tile."""
        return self._tile_size_px // int(self.vision_config.patch_size)  # type: ignore[arg-type]

    @property
    def num_visual_tokens(self) -> int:
        """Tokens that stand for the image in the prompt, newlines included."""
        rows, cols = self.tiles.visible_cells(self.pool_size)
        return (rows.stop - rows.start) * (cols.stop - cols.start + int(self.image_newline))

    @classmethod
    def llada_8b(cls, **overrides: Any) -> DriveFineConfig:
        """The paper's model: LLaDA-8B, SigLIP so400m-384 less its last layer, 4 x 2 tiles, n = 4."""
        text = LlamaConfig(
            vocab_size=126464,
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            max_position_embeddings=4096,
            bos_token_id=126080,
            eos_token_id=126081,
            pad_token_id=126081,
        )
        vision = SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=26,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
            vision_use_head=False,
        )
        return cls(text_config=text, vision_config=vision, **overrides)

    @classmethod
    def tiny(cls, **overrides: Any) -> DriveFineConfig:
        """The same model at a size that trains from scratch on two CPU cores in minutes."""
        text = LlamaConfig(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=4,
            rms_norm_eps=1e-5,
            initializer_range=0.05,  # about half of 1 / sqrt(hidden_size); 0.02 suits a width of thousands
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        vision = SiglipVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=96,
            patch_size=16,
            vision_use_head=False,
        )
        settings: dict[str, Any] = {
            "n_refine": 2,
            "mask_token_id": 2,
            "tile_cols": 4,
            "tile_rows": 1,
            "tile_fit": "crop",  # 1920 x 480 around the horizon: without the sky, more pixels of road
            "tile_interpolation": "area",
            "pool_size": 3,
            "image_newline": False,
            "learned_positions": True,
            "perception_rows": 16,
            "perception_cols": 12,
            "action_rows": "ordinal",
            "action_embedding_std": 0.1,
            "prompt_type": "vel_and_acc",
            "pose_format": "action_tokens",
            "prompt_wording": "short",
            "head_width": 96,  # with 4 blocks about as large as the refinement expert, which baselines lack
            "head_blocks": 4,
            "head_heads": 4,
        }
        return cls(text_config=text, vision_config=vision, **(settings | overrides))

    @classmethod
    def debug(cls, **overrides: Any) -> DriveFineConfig:
        """Everything the real model has, in the smallest numbers; for tests."""
        text = LlamaConfig(
            vocab_size=300,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            max_position_embeddings=512,
        )
        vision = SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
            vision_use_head=False,
        )
        settings: dict[str, Any] = {
            "n_refine": 2,
            "mask_token_id": 299,
            "spatial_min_m": -16.0,
            "spatial_step_m": 0.5,
            "spatial_bins": 64,
            "heading_min_deg": -80.0,
            "heading_step_deg": 5.0,
            "heading_bins": 32,
            "tile_cols": 2,
            "tile_rows": 1,
            "pool_size": 1,
            "head_width": 32,
            "head_blocks": 2,
            "head_heads": 2,
        }
        return cls(text_config=text, vision_config=vision, **(settings | overrides))
