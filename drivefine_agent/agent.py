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
from dataclasses import dataclass, replace
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
from drivefine_agent.diffusion.schedule import ScheduleName
from drivefine_agent.errors import DataError, TrajectoryError
from drivefine_agent.features import (
    DriveFineFeatureBuilder,
    TokenizedTrajectoryTargetBuilder,
    trim_contexts,
)
from drivefine_agent.learned_scorer import SCORER_FOLDER, LearnedScorer, load_head_for
from drivefine_agent.loaded_planners import (
    check_decoder,
    model_device,
    model_dtype,
    model_folder,
    shared_planner,
)
from drivefine_agent.model.backbone.attention import ATTENTIONS, AttentionName
from drivefine_agent.model.choices import DecoderName
from drivefine_agent.model.quantization import QUANTIZATIONS, QuantizationName
from drivefine_agent.model.text_tokenizer import TextTokenizer
from drivefine_agent.navsim_api import (
    AbstractAgent,
    AbstractFeatureBuilder,
    AbstractTargetBuilder,
    AgentInput,
    SensorConfig,
    Trajectory,
    TrajectorySampling,
    base_agent_arguments,
    default_sampling,
)
from drivefine_agent.navsim_inputs import blank_image as with_blank_image
from drivefine_agent.navsim_inputs import observation_from_agent_input, observation_from_window
from drivefine_agent.navsim_training import Consent, NavsimTraining, ObjectiveName
from drivefine_agent.planner import Planner, PlanResult, plan_tokens, scene_generators
from drivefine_agent.prompt import PromptBuilder
from drivefine_agent.provenance import warn_of_test_data
from drivefine_agent.selection import ORACLE, SCORER, SELECTIONS, SelectionName, select, true_scores
from drivefine_agent.training.config import ModelChoice
from drivefine_agent.training.model_choice import build_planner, preset_config

_logger = logging.getLogger(__name__)

STAGE_GENERATED = "generated"
STAGE_FINAL = "final"


@dataclass
class FallbackCount:
    """How often the agent could not plan and drove on at constant velocity instead."""

    num_planned: int = 0
    num_fallbacks: int = 0


def load_prompts(folder: Path) -> PromptBuilder:
    """The prompt format of a checkpoint, without its weights.

    Raises:
      DataError: the folder holds no checkpoint.
    """
    if not (folder / "config.json").is_file():
        raise DataError(
            f"no DriveFine checkpoint at {folder} (config.json is missing): give a folder training wrote"
        )
    from drivefine_agent.model.config import DriveFineConfig

    config = DriveFineConfig.from_pretrained(folder, local_files_only=True)
    return PromptBuilder(config, TextTokenizer.from_file(folder))


class DriveFineAgent(AbstractAgent):
    """Masked-diffusion planner with refinement. See the module's doc-string."""

    needs_image = True

    def __init__(
        self,
        checkpoint_path: str | None = None,
        trajectory_sampling: TrajectorySampling | None = None,
        preset: str | None = None,
        refine: bool = True,
        num_denoising_steps: int = 12,
        schedule: ScheduleName = "cosine",
        temperature: float = 0.0,
        second_pass: int = 0,
        num_samples: int = 1,
        selection: SelectionName = "first",
        scorer_path: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        attention: AttentionName = "sdpa",
        quantization: QuantizationName = "none",
        compile: bool = False,
        blank_image: bool = False,
        strict: bool = False,
        seed: int = 0,
        decoder: DecoderName = "masked",
        objective: ObjectiveName = "generator",
        optimizer: Mapping[str, Any] | None = None,
        label_smoothing_bins: float = 0.0,
        allow_test_split: bool = False,
        i_train_on_test_tokens_of: str | None = None,
    ) -> None:
        """Holds settings only, and so can be pickled; weights are loaded by `initialize` or for training.

        Args:
          checkpoint_path: folder of a model, or of a run that holds `model/`.
          trajectory_sampling: NAVSIM's; 8 poses, 0.5 s apart.
          preset: `tiny` or `debug`, for training from random weights where there is no checkpoint.
          refine: whether the refinement expert has the last word.
          num_denoising_steps: of the generation expert.
          schedule: how many slots are committed in which step.
          temperature: of the generation expert; 0 is greedy.
          second_pass: slots that the generation expert fills in twice, see `DecodingOptions`; a control.
          num_samples: plans per scene, of which `selection` names the one to drive.
          selection: see `selection.select`; `oracle` in tools/evaluate.py only.
          scorer_path: of tools/train_scorer.py, for this model; null: the folder `scorer` in checkpoint_path.
          device: where the model runs; `auto`: the GPU if there is one.
          dtype: of the weights when planning; `auto`: bfloat16 on a GPU, else float32.
          attention: kernel: `sdpa`, `flash` or `flex`.
          quantization: of the blocks' weights: `none`, `int8` or `fp8`.
          compile: compile the answer step when it is first used (on a GPU: into CUDA graphs).
          blank_image: plan without looking: the image is replaced by grey.
          strict: raise where the agent would otherwise fall back on constant velocity.
          seed: of sampling, of the training masks and of random initial weights.
          decoder: what the checkpoint must be: `masked` (DriveFine), or the baseline `autoregressive`.
          objective: what NAVSIM's training script trains, `generator` or `refiner`.
          optimizer: fields of training.optimization.OptimizerConfig, for NAVSIM's training script.
          label_smoothing_bins: width of the training targets [bins], for NAVSIM's training script.
          allow_test_split: first consent to training on test data, see training/split_guard.py.
          i_train_on_test_tokens_of: second consent; names the test split.
        """
        sampling = default_sampling() if trajectory_sampling is None else trajectory_sampling
        super().__init__(**base_agent_arguments(sampling))
        self._trajectory_sampling = sampling
        if sampling.num_poses != NUM_POSES or sampling.interval_length != POSE_INTERVAL_S:
            raise ValueError(
                f"DriveFine plans {NUM_POSES} poses, {POSE_INTERVAL_S} s apart, so trajectory_sampling "
                f"must be of these, got {sampling}"
            )
        if selection not in SELECTIONS:
            raise ValueError(f"unknown selection {selection!r}: choose one of {', '.join(SELECTIONS)}")
        self._device = model_device(device)
        self._dtype = model_dtype(dtype, self._device)
        self._checkpoint_path = None if checkpoint_path is None else Path(checkpoint_path)
        self._preset = None if preset is None else ModelChoice(preset=preset)  # type: ignore[arg-type]
        self._options = DecodingOptions(
            num_steps=num_denoising_steps,
            schedule=schedule,
            temperature=temperature,
            num_samples=num_samples,
            second_pass=second_pass,
            refine=refine,
        )
        self._selection = selection
        if scorer_path is not None and selection != SCORER:
            raise ValueError(f"scorer_path is for selection={SCORER}, got selection={selection}")
        self._scorer_path = None if scorer_path is None else Path(scorer_path)
        self._scorer: LearnedScorer | None = None
        if attention not in ATTENTIONS or quantization not in QUANTIZATIONS:
            raise ValueError(
                f"attention must be one of {', '.join(ATTENTIONS)} and quantization one of "
                f"{', '.join(QUANTIZATIONS)}, got {attention!r} and {quantization!r}"
            )
        self._attention, self._quantization, self._compile = attention, quantization, compile
        self._blank_image = blank_image
        self._strict = strict
        self._seed = seed
        if decoder != "masked" and selection == SCORER:
            raise ValueError(
                f"selection={SCORER} reads answers as DriveFine's experts do, so decoder must be masked, got "
                f"{decoder!r}"
            )
        if decoder not in ("masked", "autoregressive") or (decoder != "masked" and refine):
            raise ValueError(
                "decoder must be masked, or autoregressive with refine=false (it has no refinement expert), "
                f"got {decoder!r} and refine={refine}"
            )
        if decoder != "masked" and second_pass > 0:
            raise ValueError(f"second_pass is for decoder=masked, got {decoder=} and {second_pass=}")
        self._decoder: DecoderName = decoder
        self._objective = objective
        self._optimizer = dict(optimizer or {})
        self._label_smoothing_bins = label_smoothing_bins
        self._consent = Consent(allow_test_split, i_train_on_test_tokens_of)
        self._planner: Planner | None = None
        self._training: NavsimTraining | None = None
        self.fallbacks = FallbackCount()

    def name(self) -> str:
        """Name for tables and reports."""
        name = "drivefine" if self._options.refine else "drivefine_unrefined"
        if self._decoder != "masked":
            name = self._decoder
        if self._options.second_pass > 0:
            name = f"{name}_second_pass"
        if self._options.num_samples > 1:
            name += f"_best_of_{self._options.num_samples}"
        return f"{name}_{self._selection}" if self._selection in (SCORER, ORACLE) else name

    @property
    def needs_scoring_scene(self) -> bool:
        """Whether it looks the true score up: the oracle does."""
        return self._selection == ORACLE

    @property
    def privileged(self) -> str:
        """What it knows that a planner cannot; empty for all but the oracle."""
        return "picked by the true score" if self._selection == ORACLE else ""

    # -------------------------------------------------------------------------------- what NAVSIM calls

    def initialize(self) -> None:
        """Loads the model, once in a process.

        Raises:
          DataError: no checkpoint is named, or the folder holds none; or the learned scorer is missing, or of
            another model.
        """
        _ = self.planner
        if self._selection == SCORER:
            _ = self.scorer

    def get_sensor_config(self) -> SensorConfig:
        """The current front camera image alone; a Python list, since NAVSIM ignores any other sequence."""
        config = SensorConfig.build_no_sensors()
        config.cam_f0 = [3]
        return config

    def get_feature_builders(self) -> list[AbstractFeatureBuilder]:
        """Image tiles and prompt."""
        self._refuse_oracle()
        return [DriveFineFeatureBuilder(self._prompts(), self._blank_image)]

    def get_target_builders(self) -> list[AbstractTargetBuilder]:
        """Tokenized trajectory."""
        return [TokenizedTrajectoryTargetBuilder(self._prompts().action_tokenizer)]

    def compute_trajectory(self, agent_input: AgentInput) -> Trajectory:
        """The trajectory of one scene; constant velocity, logged and counted, if planning fails.

        Raises:
          DataError: the model cannot be loaded, or the true score is to choose.
          Exception: whatever went wrong, with `strict=True` only.
        """
        self.eval()
        self._refuse_oracle()
        self.initialize()  # a missing checkpoint is no reason to drive on
        try:
            observation = observation_from_agent_input(agent_input)
            poses = self.plan_observations([observation])[STAGE_FINAL][0]
            if not np.isfinite(poses).all():
                raise TrajectoryError(
                    f"a plan must be finite, got {poses.tolist()} from the model: check its weights "
                    "(tools/doctor.py)"
                )
        except Exception as error:  # the border: in NAVSIM 2.2 one exception costs every scene its score
            if self._strict:
                raise
            poses = self._fall_back(agent_input, error)
        self.fallbacks.num_planned += 1
        return Trajectory(poses.astype(np.float32), self._trajectory_sampling)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Plans a batch of features. Inside NAVSIM's training empty: the loss needs the targets, not a plan.

        Args:
          features: of `DriveFineFeatureBuilder`, batched.

        Returns:
          `trajectory` (B, 8, 3) float32 on the CPU: refined if the agent refines.
        """
        if self._training is not None:
            return {}
        self._refuse_oracle()
        planner = self.planner
        context_ids, lengths = trim_contexts(features)
        unpadded = context_ids.cpu().numpy()
        ends = features["drivefine_context_length"].tolist()
        contexts = [ids[:end] for ids, end in zip(unpadded, ends, strict=True)]
        tokens = plan_tokens(
            planner.model,
            features["drivefine_tiles"].to(planner.device),
            context_ids.to(planner.device),
            self._instruction("predict"),
            self._instruction("refine"),
            self._options,
            None if lengths is None else lengths.to(planner.device),
            generator=scene_generators(self._seed, features["drivefine_tiles"].cpu().numpy(), contexts),
            step=planner.step,
            scorer=self.scorer,
        )
        result = planner.to_result(tokens, np.zeros(len(context_ids), dtype=np.int64))
        return {"trajectory": torch.from_numpy(self._selected(result)[STAGE_FINAL].astype(np.float32))}

    # -------------------------------------------------------------------------------- NAVSIM's training

    def get_training_callbacks(self) -> list[Any]:
        """Lightning's callbacks; the model is loaded here, before NAVSIM hands the agent to its trainer.

        `run_training.py` never calls `initialize`, and Lightning must see all parameters before it places
        them on devices.

        Raises:
          DataError: there is neither a checkpoint nor a preset to start from.
        """
        return self._begin_training().callbacks()

    def compute_loss(
        self, features: dict[str, Tensor], targets: dict[str, Tensor], predictions: dict[str, Tensor]
    ) -> Tensor:
        """() masked-diffusion loss of the generation expert, or the refiner's, as `objective` says.

        Args:
          features: of `DriveFineFeatureBuilder`, batched.
          targets: of `TokenizedTrajectoryTargetBuilder`, batched.
          predictions: not used.
        """
        return self._begin_training().loss(features, targets, is_validation=not self.training)

    def get_optimizers(self) -> torch.optim.Optimizer | dict[str, Any]:
        """Optimizer and schedule, as Lightning takes them."""
        return self._begin_training().optimizers()

    def _begin_training(self) -> NavsimTraining:
        if self._training is None:
            start = None if self._checkpoint_path is None else self._folder()
            if start is not None:
                planner = Planner.from_pretrained(start)
            elif self._preset is not None:
                planner = build_planner(replace(self._preset, decoder=self._decoder), self._seed)
            else:
                raise DataError(
                    "training needs weights to start from, got none: give agent.checkpoint_path, or "
                    "agent.preset=tiny"
                )
            self._planner = planner
            self.model = planner.model  # registered: Lightning finds its parameters here
            self._training = NavsimTraining(
                planner,
                self._objective,
                self._optimizer,
                self._label_smoothing_bins,
                self._seed,
                start,
                self._consent,
            )
        return self._training

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
                    f"DriveFine needs the front camera image, got none for scene {case.window.token}: "
                    "fetch its sensor blobs"
                )
            observations.append(observation_from_window(case.window, case.front_image))
        result = self._planned(observations)
        if self._selection != ORACLE:
            return self._selected(result)
        tokens, scenes = [c.window.token for c in cases], [c.scoring_scene for c in cases]
        return self._selected(result, true_scores(tokens, scenes, _as_navsim(result.final)))

    def plan_observations(self, observations: Sequence[Observation]) -> dict[str, NDArray[np.float64]]:
        """(B, 8, 3) poses by stage for a batch of observations, in the precision of NAVSIM's trajectories."""
        self._refuse_oracle()
        return self._selected(self._planned(observations))

    # -------------------------------------------------------------------------------- inside

    @property
    def planner(self) -> Planner:
        """The planner, loaded when first asked for and shared with the process's other agents."""
        if self._planner is None:
            warn_of_test_data(self._folder())
            self._planner = shared_planner(
                self._folder(),
                self._device,
                self._dtype,
                self._attention,
                self._quantization,
                self._compile,
            )
            check_decoder(self._planner.model.config, self._decoder, self._folder())
        return self._planner

    @property
    def scorer(self) -> LearnedScorer | None:
        """The learned scorer, loaded when first asked for; None where another rule selects."""
        if self._scorer is None and self._selection == SCORER:
            planner, folder = self.planner, self._folder()
            assert self._checkpoint_path is not None  # the planner is loaded
            path = self._scorer_path or self._checkpoint_path / SCORER_FOLDER
            head = load_head_for(path, folder).to(planner.device)
            reads = self._instruction("refine" if planner.model.config.n_refine > 0 else "predict")
            self._scorer = LearnedScorer(head, planner.model, reads)
        return self._scorer

    def _planned(self, observations: Sequence[Observation]) -> PlanResult:
        if self._blank_image:
            observations = [with_blank_image(observation) for observation in observations]
        return self.planner.plan(observations, self._options, self._seed, self.scorer)

    def _refuse_oracle(self) -> None:
        if self._selection == ORACLE:
            raise DataError(
                "selection=oracle picks by the true score, which only tools/evaluate.py benchmark=navsim_v1 "
                "knows, not others: choose first, confidence, consensus or scorer elsewhere"
            )

    def _selected(
        self, result: PlanResult, true: NDArray[np.float64] | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """(B, 8, 3) the plan to drive, and the same sample before refinement, by stage."""
        rows = np.arange(len(result.final))
        picked = select(result, self._selection, true)
        stages = {STAGE_FINAL: result.final[rows, picked]}
        if self._options.refine:
            stages[STAGE_GENERATED] = result.generated[rows, picked]
        return {name: _as_navsim(poses) for name, poses in stages.items()}

    def _folder(self) -> Path:
        """Folder of the model: the one named, or `model` in it."""
        if self._checkpoint_path is None:
            raise DataError(
                "DriveFineAgent plans with trained weights, got none: set agent.checkpoint_path to a "
                "folder that tools/train_sft.py, rl/train_hybrid.py or NAVSIM's run_training.py wrote"
            )
        return model_folder(self._checkpoint_path)

    def _prompts(self) -> PromptBuilder:
        """Prompt format, without the weights: NAVSIM's feature caching has no use for them."""
        if self._planner is not None:
            return self._planner.prompts
        if self._checkpoint_path is None and self._preset is not None:
            return PromptBuilder(preset_config(self._preset), TextTokenizer.tiny())
        return load_prompts(self._folder())

    def _instruction(self, task: Any) -> Tensor:
        return torch.from_numpy(self.planner.prompts.instruction(task)).to(self.planner.device)

    def _fall_back(self, agent_input: AgentInput, error: Exception) -> NDArray[np.float64]:
        self.fallbacks.num_fallbacks += 1
        _logger.exception(
            "DriveFine could not plan and falls back on constant velocity (fallback %d of %d plans): %s",
            self.fallbacks.num_fallbacks,
            self.fallbacks.num_planned + 1,
            error,
        )
        try:
            velocity = np.asarray(agent_input.ego_statuses[-1].ego_velocity, dtype=np.float64)
            return constant_velocity_poses(velocity if np.isfinite(velocity).all() else np.zeros(2))
        # The border again: whatever hides the speed must not end NAVSIM's run either.
        except Exception:
            _logger.exception("The speed cannot be read either: DriveFine stands still")
            return constant_velocity_poses(np.zeros(2))


def _as_navsim(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Through float32, as NAVSIM is given them: then what is evaluated here scores as it does there."""
    return poses.astype(np.float32).astype(np.float64)
