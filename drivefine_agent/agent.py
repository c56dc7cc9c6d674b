"""DriveFineAgent: the planner as NAVSIM's scripts, and our own evaluation, call it.

Inside NAVSIM (`agent=drivefine`) every scene comes as an `AgentInput`, one at a time, and no exception may
leave `compute_trajectory`: in NAVSIM 2.2 a single one costs the whole evaluation. So this outermost border,
and only it, answers a failure with a declared fallback, constant velocity, which is logged and counted;
`strict=True` raises instead. Our own evaluation asks for batches through `plan_stages` and gets every error
as it is.

What is trained is what is submitted: features, prompts, decoding and refinement are those of `planner.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drivefine_agent.baselines.base import PlanningCase
from drivefine_agent.baselines.constant_velocity import constant_velocity_poses
from drivefine_agent.constants import NUM_POSES, POSE_INTERVAL_S
from drivefine_agent.data.types import Observation
from drivefine_agent.diffusion.decoding import DecodingOptions
from drivefine_agent.diffusion.losses import answer_cross_entropy, pair_scored_row
from drivefine_agent.diffusion.masking import (
    complementary_rows,
    mask_actions,
    sample_mask_ratios,
    sample_masks,
)
from drivefine_agent.diffusion.schedule import ScheduleName
from drivefine_agent.errors import DataError, DriveFineError, TrajectoryError
from drivefine_agent.model.backbone.attention import ATTENTIONS, AttentionName
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.quantization import QUANTIZATIONS, QuantizationName
from drivefine_agent.model.text_tokenizer import TextTokenizer
from drivefine_agent.model.tiles import tile_image
from drivefine_agent.navsim_api import (
    AbstractAgent,
    AbstractFeatureBuilder,
    AbstractTargetBuilder,
    AgentInput,
    Scene,
    SensorConfig,
    Trajectory,
    TrajectorySampling,
    base_agent_arguments,
    default_sampling,
)
from drivefine_agent.navsim_inputs import blank_image as with_blank_image
from drivefine_agent.navsim_inputs import observation_from_agent_input, observation_from_window
from drivefine_agent.planner import Planner, plan_tokens
from drivefine_agent.prompt import PromptBuilder
from drivefine_agent.tokenizer import ActionTokenizer

_logger = logging.getLogger(__name__)

STAGE_GENERATED = "generated"
STAGE_FINAL = "final"
MAX_CONTEXT_LENGTH = 1024
"""Room for a prompt's text in cached features; the paper's wording takes about 250 tokens."""


@dataclass
class FallbackCount:
    """How often the agent could not plan and drove on at constant velocity instead."""

    num_planned: int = 0
    num_fallbacks: int = 0


class DriveFineFeatureBuilder(AbstractFeatureBuilder):
    """Image tiles and prompt of a scene, compact and stackable: what the model reads."""

    def __init__(self, prompts: PromptBuilder, blank_image: bool = False) -> None:
        self._prompts = prompts
        self._blank_image = blank_image

    def get_unique_name(self) -> str:
        """Name under which NAVSIM caches these features; tells image grid and prompt format apart."""
        config, tiles = self._prompts.config, self._prompts.config.tiles
        parts = (
            f"{tiles.cols}x{tiles.rows}x{tiles.size_px}",
            tiles.fit,
            tiles.interpolation,
            config.prompt_type,
            config.pose_format,
            config.prompt_wording,
            f"{config.spatial_bins}_{config.heading_bins}",
        )
        return "drivefine_" + "_".join(parts) + ("_blank" if self._blank_image else "")

    def compute_features(self, agent_input: AgentInput) -> dict[str, Tensor]:
        """Features of one scene.

        Returns:
          `drivefine_tiles` (T, S, S, 3) uint8; `drivefine_context_ids` (1024,) int64, right-padded;
          `drivefine_context_length` () int64.
        """
        return self.from_observation(observation_from_agent_input(agent_input))

    def from_observation(self, observation: Observation) -> dict[str, Tensor]:
        """The same of an observation."""
        if self._blank_image:
            observation = with_blank_image(observation)
        ids = self._prompts.context(observation).ids
        if len(ids) > MAX_CONTEXT_LENGTH:
            raise DataError(f"a prompt must have at most {MAX_CONTEXT_LENGTH} tokens, got {len(ids)}")
        padded = np.full(
            MAX_CONTEXT_LENGTH, self._prompts.config.text_config.pad_token_id or 0, dtype=np.int64
        )
        padded[: len(ids)] = ids
        return {
            "drivefine_tiles": torch.from_numpy(tile_image(observation.image, self._prompts.config.tiles)),
            "drivefine_context_ids": torch.from_numpy(padded),
            "drivefine_context_length": torch.tensor(len(ids)),
        }


class TokenizedTrajectoryTargetBuilder(AbstractTargetBuilder):
    """The driver's trajectory as action ids and as poses."""

    def __init__(self, tokenizer: ActionTokenizer) -> None:
        self._tokenizer = tokenizer

    def get_unique_name(self) -> str:
        """Name under which NAVSIM caches these targets."""
        spec = self._tokenizer.spec
        return f"drivefine_target_{spec.spatial_m.num_bins}_{spec.heading_deg.num_bins}"

    def compute_targets(self, scene: Scene) -> dict[str, Tensor]:
        """`drivefine_actions` (24,) int64; `drivefine_poses` (8, 3) float32."""
        poses = np.asarray(scene.get_future_trajectory(NUM_POSES).poses, dtype=np.float64)
        return {
            "drivefine_actions": torch.from_numpy(self._tokenizer.encode(poses)),
            "drivefine_poses": torch.from_numpy(poses.astype(np.float32)),
        }


def load_prompts(folder: Path) -> PromptBuilder:
    """The prompt format of a checkpoint, without its weights.

    Raises:
      DataError: the folder holds no checkpoint.
    """
    if not (folder / "config.json").is_file():
        raise DataError(
            f"no DriveFine checkpoint at {folder} (config.json is missing): give a folder training wrote"
        )
    config = DriveFineConfig.from_pretrained(folder, local_files_only=True)
    return PromptBuilder(config, TextTokenizer.from_file(folder))


class DriveFineAgent(AbstractAgent):
    """Masked-diffusion planner with refinement. See the module's doc-string."""

    needs_image = True
    needs_scoring_scene = False

    def __init__(
        self,
        checkpoint_path: str | None = None,
        trajectory_sampling: TrajectorySampling | None = None,
        refine: bool = True,
        num_denoising_steps: int = 12,
        schedule: ScheduleName = "cosine",
        temperature: float = 0.0,
        device: str = "cpu",
        dtype: str = "float32",
        attention: AttentionName = "sdpa",
        quantization: QuantizationName = "none",
        compile: bool = False,
        blank_image: bool = False,
        strict: bool = False,
        lr: float = 4e-5,
        seed: int = 0,
    ) -> None:
        """Holds settings only; weights are loaded by `initialize`, or when training first asks for them.

        Args:
          checkpoint_path: folder of a model, or of a run of tools/train_sft.py that holds `model/`.
          trajectory_sampling: NAVSIM's; 8 poses, 0.5 s apart.
          refine: whether the refinement expert has the last word.
          num_denoising_steps: of the generation expert.
          schedule: how many slots are committed in which step.
          temperature: of the generation expert; 0 is greedy.
          device: where the model runs, e.g. `cuda`.
          dtype: of the weights, e.g. `bfloat16`.
          attention: kernel: `sdpa`, `flash` or `flex`.
          quantization: of the blocks' weights: `none`, `int8` or `fp8`.
          compile: compile the answer step when it is first used (on a GPU: into CUDA graphs).
          blank_image: plan without looking: the image is replaced by grey.
          strict: raise where the agent would otherwise fall back on constant velocity.
          lr: learning rate for NAVSIM's own training script.
          seed: of sampling and of the training masks.
        """
        sampling = default_sampling() if trajectory_sampling is None else trajectory_sampling
        super().__init__(**base_agent_arguments(sampling))
        self._trajectory_sampling = sampling
        if sampling.num_poses != NUM_POSES or sampling.interval_length != POSE_INTERVAL_S:
            raise ValueError(f"DriveFine plans {NUM_POSES} poses, {POSE_INTERVAL_S} s apart, got {sampling}")
        if not hasattr(torch, dtype) or not isinstance(getattr(torch, dtype), torch.dtype):
            raise ValueError(f"dtype must name a torch dtype such as float32 or bfloat16, got {dtype!r}")
        self._checkpoint_path = None if checkpoint_path is None else Path(checkpoint_path)
        self._options = DecodingOptions(
            num_steps=num_denoising_steps, schedule=schedule, temperature=temperature, refine=refine
        )
        self._device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, dtype)
        if attention not in ATTENTIONS or quantization not in QUANTIZATIONS:
            raise ValueError(
                f"attention must be one of {', '.join(ATTENTIONS)} and quantization one of "
                f"{', '.join(QUANTIZATIONS)}, got {attention!r} and {quantization!r}"
            )
        self._attention, self._quantization, self._compile = attention, quantization, compile
        self._blank_image = blank_image
        self._strict = strict
        self._lr = lr
        self._seed = seed
        self._planner: Planner | None = None
        self._generator: torch.Generator | None = None
        self.fallbacks = FallbackCount()

    def name(self) -> str:
        """Name for tables and reports."""
        return "drivefine" if self._options.refine else "drivefine_unrefined"

    # -------------------------------------------------------------------------------- what NAVSIM calls

    def initialize(self) -> None:
        """Loads the model, once.

        Raises:
          DataError: no checkpoint is named, or the folder holds none.
        """
        _ = self.planner

    def get_sensor_config(self) -> SensorConfig:
        """The current front camera image alone; a Python list, since NAVSIM ignores any other sequence."""
        config = SensorConfig.build_no_sensors()
        config.cam_f0 = [3]
        return config

    def get_feature_builders(self) -> list[AbstractFeatureBuilder]:
        """Image tiles and prompt."""
        return [DriveFineFeatureBuilder(self._prompts(), self._blank_image)]

    def get_target_builders(self) -> list[AbstractTargetBuilder]:
        """Tokenized trajectory."""
        return [TokenizedTrajectoryTargetBuilder(self._prompts().action_tokenizer)]

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Plans a batch of features; in training, hands the batch on to `compute_loss`.

        Args:
          features: of `DriveFineFeatureBuilder`, batched.

        Returns:
          `trajectory` (B, 8, 3) float32 on the CPU: refined if the agent refines. In training mode empty: the
          loss needs the targets, which come later.
        """
        if self.training:
            return {}
        planner = self.planner
        tiles, context_ids, lengths = self._model_inputs(features)
        tokens = plan_tokens(
            planner.model,
            tiles,
            context_ids,
            self._instruction("predict"),
            self._instruction("refine"),
            self._options,
            lengths,
            generator=self._sampling_generator(),
            step=planner.step,
        )
        result = planner.to_result(tokens, np.zeros(len(context_ids), dtype=np.int64))
        return {"trajectory": torch.from_numpy(result.final[:, 0].astype(np.float32))}

    def compute_trajectory(self, agent_input: AgentInput) -> Trajectory:
        """The trajectory of one scene; constant velocity, logged and counted, if planning fails.

        Raises:
          DataError: the model cannot be loaded.
          Exception: whatever went wrong, with `strict=True` only.
        """
        self.eval()
        self.initialize()  # a missing checkpoint is no reason to drive on
        try:
            observation = observation_from_agent_input(agent_input)
            poses = self.plan_observations([observation])[STAGE_FINAL][0]
            if not np.isfinite(poses).all():
                raise TrajectoryError(f"a plan must be finite, got {poses.tolist()}")
        except (DriveFineError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            if self._strict:
                raise
            poses = self._fall_back(agent_input, error)
        self.fallbacks.num_planned += 1
        return Trajectory(poses.astype(np.float32), self._trajectory_sampling)

    def compute_loss(
        self, features: dict[str, Tensor], targets: dict[str, Tensor], predictions: dict[str, Tensor]
    ) -> Tensor:
        """Masked-diffusion loss of the generation expert with complementary masking.

        Args:
          features: of `DriveFineFeatureBuilder`, batched.
          targets: of `TokenizedTrajectoryTargetBuilder`, batched.
          predictions: not used.
        """
        tiles, context_ids, lengths = self._model_inputs(features)
        actions = targets["drivefine_actions"].to(self.planner.device)[:, None]  # (B, 1, 24)
        ratios = sample_mask_ratios(len(actions), device=self.planner.device)
        is_masked = sample_masks(ratios, actions.shape[-1])
        logits = self.planner.model(
            tiles,
            context_ids,
            self._instruction("predict"),
            mask_actions(actions, complementary_rows(is_masked)),
            context_lengths=lengths,
            scored_row=pair_scored_row(is_masked),
        )
        return answer_cross_entropy(logits, actions).total

    def get_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the generation path; for the paper's groups and schedule see tools/train_sft.py."""
        model = self.planner.model
        parts = ("vision", "projector", "language", "action")
        parameters = [parameter for part in parts for parameter in model.parameters_of(part)]
        return torch.optim.AdamW(parameters, lr=self._lr, weight_decay=0.0)

    # -------------------------------------------------------------------------------- what evaluation calls

    @property
    def stage_names(self) -> tuple[str, ...]:
        """`final`, and `generated` where refinement changes it."""
        return (STAGE_FINAL, STAGE_GENERATED) if self._options.refine else (STAGE_FINAL,)

    def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
        """(B, 8, 3) poses of a batch; errors are raised, nothing falls back."""
        return self.plan_stages(cases)[STAGE_FINAL]

    def plan_stages(self, cases: Sequence[PlanningCase]) -> Mapping[str, NDArray[np.float64]]:
        """(B, 8, 3) poses by stage: `final`, and `generated` before refinement."""
        observations = []
        for case in cases:
            if case.front_image is None:
                raise DataError(
                    f"DriveFine needs the front camera image, got none for scene {case.window.token}"
                )
            observations.append(observation_from_window(case.window, case.front_image))
        return self.plan_observations(observations)

    def plan_observations(self, observations: Sequence[Observation]) -> dict[str, NDArray[np.float64]]:
        """(B, 8, 3) poses by stage for a batch of observations, in the precision of NAVSIM's trajectories."""
        if self._blank_image:
            observations = [with_blank_image(observation) for observation in observations]
        result = self.planner.plan(observations, self._options, self._sampling_generator())
        stages = {STAGE_FINAL: result.final[:, 0]}
        if self._options.refine:
            stages[STAGE_GENERATED] = result.generated[:, 0]
        # float32, as NAVSIM is given them: what is evaluated here then scores as it does there, bit for bit.
        return {name: poses.astype(np.float32).astype(np.float64) for name, poses in stages.items()}

    # -------------------------------------------------------------------------------- inside

    @property
    def planner(self) -> Planner:
        """The planner, loaded when first asked for: NAVSIM's training never calls `initialize`."""
        if self._planner is None:
            self._planner = Planner.from_pretrained(
                self._folder(),
                self._options,
                self._device,
                self._dtype,
                self._attention,
                self._quantization,
                self._compile,
            )
            self.model = self._planner.model  # registered, so that NAVSIM's training finds its parameters
        return self._planner

    def _folder(self) -> Path:
        """Folder of the model: the one named, or `model` in it."""
        if self._checkpoint_path is None:
            raise DataError("DriveFineAgent needs checkpoint_path, a folder that tools/train_sft.py wrote")
        inner = self._checkpoint_path / "model"
        return inner if (inner / "config.json").is_file() else self._checkpoint_path

    def _prompts(self) -> PromptBuilder:
        """Prompt format, without the weights: NAVSIM's feature caching has no use for them."""
        if self._planner is not None:
            return self._planner.prompts
        return load_prompts(self._folder())

    def _instruction(self, task: Any) -> Tensor:
        return torch.from_numpy(self.planner.prompts.instruction(task)).to(self.planner.device)

    def _sampling_generator(self) -> torch.Generator | None:
        if self._options.temperature == 0.0:
            return None
        if self._generator is None:
            self._generator = torch.Generator(self.planner.device).manual_seed(self._seed)
        return self._generator

    def _model_inputs(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tiles, context ids cut to the longest of the batch, lengths (None where all are equal)."""
        lengths = features["drivefine_context_length"].to(self.planner.device)
        longest = int(lengths.max())
        context_ids = features["drivefine_context_ids"][:, :longest].to(self.planner.device)
        tiles = features["drivefine_tiles"].to(self.planner.device)
        return tiles, context_ids, None if bool((lengths == longest).all()) else lengths

    def _fall_back(self, agent_input: AgentInput, error: BaseException) -> NDArray[np.float64]:
        self.fallbacks.num_fallbacks += 1
        _logger.exception(
            "DriveFine could not plan and falls back on constant velocity (fallback %d of %d plans): %s",
            self.fallbacks.num_fallbacks,
            self.fallbacks.num_planned + 1,
            error,
        )
        velocity = np.asarray(agent_input.ego_statuses[-1].ego_velocity, dtype=np.float64)
        return constant_velocity_poses(velocity if np.isfinite(velocity).all() else np.zeros(2))
