"""What a reinforcement run can be told; every default is here, the YAML files hold only what a run changes.

Defaults are the paper's where it names a number; what it leaves open follows TraceRL and LaViDa.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.diffusion.decoding import DecodingOptions
from drivefine_agent.diffusion.schedule import ScheduleName
from drivefine_agent.training.config import dataset_paths
from drivefine_agent.training.optimization import OptimizerConfig
from rl.engine import EngineConfig


def reinforcement_optimizer() -> OptimizerConfig:
    """AdamW at the paper's constant rate; the other numbers are TraceRL's."""
    return OptimizerConfig(
        learning_rate=1e-6, action_factor=1.0, betas=(0.9, 0.999), warmup_share=0.0, final_share=1.0
    )


@dataclass(frozen=True)
class RolloutConfig:
    """How the G samples of a scene are drafted."""

    num_samples: int = 10
    """G."""
    num_denoising_steps: int = 12
    """s."""
    schedule: ScheduleName = "cosine"
    """How many tokens are committed when."""
    temperature: float = 1.0
    """Of the generation expert's samples and of their log-probabilities."""
    save_scored: bool = False
    """Whether all answers and their sub-scores are kept in `rollouts/` of the run's folder, a file per step
    and process, for tools/train_scorer.py to learn from."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.num_samples < 2:
            raise ValueError(
                f"rollout.num_samples must be at least 2, got {self.num_samples}: "
                "an advantage is relative to the rest of the group"
            )
        if not self.temperature > 0.0:
            raise ValueError(f"rollout.temperature must be positive, got {self.temperature}")
        DecodingOptions(num_steps=self.num_denoising_steps, schedule=self.schedule)


@dataclass(frozen=True)
class HybridRolloutConfig(RolloutConfig):
    """And how each of them is refined."""

    num_refined: int = 6
    """K, refinements sampled per anchor."""
    refine_temperature: float = 1.0
    """Of the refinement expert's samples and of all log-probabilities under it."""
    greedy_anchor: bool = False
    """Whether the greedy draft, which the refiner is given when driving, is an anchor too: it gets K
    refinements, and no role in the group."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        super().__post_init__()
        if self.num_refined < 1:
            raise ValueError(f"rollout.num_refined must be at least 1, got {self.num_refined}")
        if not self.refine_temperature > 0.0:
            raise ValueError(f"rollout.refine_temperature must be positive, got {self.refine_temperature}")


@dataclass(frozen=True)
class ObjectiveConfig:
    """GRPO, equations 2 to 4."""

    tau: int = 3
    """Denoising steps whose tokens are scored in one state."""
    epsilon: float = 0.2
    """Ratios count only within 1 - epsilon .. 1 + epsilon; without effect in the first update of a step."""
    beta: float = 0.01
    """Weight of the KL divergence to the model that the run starts from; 0 spares the reference's pass."""
    num_inner_updates: int = 1
    """Optimizer updates per rollout."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("tau", "num_inner_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"objective.{name} must be at least 1, got {getattr(self, name)}")
        if not self.epsilon > 0.0 or self.beta < 0.0:
            raise ValueError(
                "objective.epsilon must be positive and objective.beta not negative, "
                f"got {self.epsilon} and {self.beta}"
            )


@dataclass(frozen=True)
class HybridObjectiveConfig(ObjectiveConfig):
    """GRPO for the generator and equation 7' for the refiner; each term can be switched off."""

    generator: bool = True
    """GRPO of the generation expert."""
    offline: bool = True
    """Equation 5: the refiner learns from pairs of the generator's samples."""
    online: bool = True
    """Equation 6: the refiner learns from its own samples."""
    min_advantage: float = 1e-3
    """Pairs of nearly equal rewards add nothing."""
    log_prob_floor: float | None = None
    """Tokens of worse targets that are already less likely than this [nat] are not pushed down; None: all."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        super().__post_init__()
        if not (self.generator or self.offline or self.online):
            raise ValueError("switch on at least one of objective.generator, .offline and .online, got none")
        if self.min_advantage < 0.0:
            raise ValueError(f"objective.min_advantage must not be negative, got {self.min_advantage}")


@dataclass(frozen=True)
class RewardConfig:
    """The reward: NAVSIM's PDM score, by default as the metric weighs it."""

    progress_weight: float = 5.0
    time_to_collision_weight: float = 5.0
    comfort_weight: float = 2.0
    scorer_path: str | None = None
    """Folder that tools/train_scorer.py wrote for the model that the run starts from; None: no scorer."""
    scorer_weight: float = 0.0
    """Times the score that the scorer predicts, added to the true one; 0 only watches how the two agree."""
    backend: Literal["processes", "ray"] = "processes"
    """Who scores: this machine, or a Ray cluster (an optional dependency)."""
    num_workers: int = 0
    """Worker processes, or Ray tasks at a time; 0 scores in this process, which then waits."""
    timeout_s: float = 60.0
    """A worker that does not answer within this time is replaced; its trajectories have no reward."""
    start_timeout_s: float = 300.0
    """The same for a worker that starts; the first one may have to compile the scorer."""
    max_failures_in_a_row: int = 8
    """So many lost workers without a result in between end the run."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        weights = (self.progress_weight, self.time_to_collision_weight, self.comfort_weight)
        if min(weights) < 0.0 or not 0.0 < sum(weights) < math.inf:
            raise ValueError(f"reward.weights must not be negative, nor all zero, got {weights}")
        if self.scorer_weight < 0.0 or (self.scorer_weight > 0.0 and self.scorer_path is None):
            raise ValueError(
                "reward.scorer_weight must not be negative, and needs reward.scorer_path, "
                f"got {self.scorer_weight} and {self.scorer_path}"
            )
        if self.num_workers < 0 or self.max_failures_in_a_row < 1:
            raise ValueError(
                "reward.num_workers must not be negative and reward.max_failures_in_a_row at least 1, "
                f"got {self.num_workers} and {self.max_failures_in_a_row}"
            )
        if not (self.timeout_s > 0.0 and self.start_timeout_s > 0.0):
            raise ValueError(
                "reward.timeout_s and reward.start_timeout_s must be positive, "
                f"got {self.timeout_s} and {self.start_timeout_s}"
            )

    @property
    def weights(self) -> dict[str, float]:
        """By sub-score."""
        return {
            "ego_progress": self.progress_weight,
            "time_to_collision_within_bound": self.time_to_collision_weight,
            "comfort": self.comfort_weight,
        }


@dataclass(frozen=True)
class RunConfig:
    """Everything else about a run."""

    seed: int = 0
    """Of scene order, drafts and refinements: all of them follow from it."""
    batch_size: int = 16
    """Scenes per step, of all processes together."""
    micro_batch_scenes: int = 4
    """Scenes at a time in a process; while one micro-batch is scored, the next is drafted."""
    num_epochs: int = 1
    max_steps: int | None = None
    """Ends the run, and its learning-rate schedule, before the epochs do."""
    num_threads: int | None = None
    """Torch's threads; None: all cores."""
    deterministic: bool = False
    """Only kernels that give the same bits each time, on a GPU too; slower there."""
    visual_cache_gb: float = 4.0
    """Visual tokens of the frozen tower are kept in memory if all of them fit into this."""
    checkpoint_every: int = 200
    """Steps between checkpoints; one more is written at the end."""
    log_every: int = 1
    """Steps between entries in metrics.jsonl and TensorBoard."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("batch_size", "micro_batch_scenes", "num_epochs", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, got {getattr(self, name)}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"run.max_steps must be at least 1 or null, got {self.max_steps}")


@dataclass(frozen=True)
class ReinforcementConfig(ABC):
    """What the configurations of all reinforcement scripts share."""

    output_dir: str
    """The run's folder: checkpoints, TensorBoard, and at the end `model/`."""
    checkpoint_path: str
    """The model to start from, and the reference: a model's folder, or a run's folder that holds `model/`."""
    metric_cache_path: str
    """The scene cache of the training split, from tools/build_scene_cache.py."""
    experiment_name: str = "drivefine_rl"
    """NAVSIM's key; part of the default output_dir."""
    train_test_split: str = "world_train"
    """Split to learn from: a name below the dataset's `splits`, or the path of its YAML."""
    allow_test_split: bool = False
    """First consent to learning from test data, see `training/split_guard.py`."""
    i_train_on_test_tokens_of: str | None = None
    """Second consent: the test split."""
    dataset_root: str | None = None
    """Folder with navsim_logs, sensor_blobs and splits; None: OPENSCENE_DATA_ROOT."""
    splits_path: str | None = None
    """Folder with train_test_split/<name>.yaml; None: `splits` of the dataset."""
    max_scenes: int | None = None
    """Use only so many scenes, evenly spread."""
    tile_cache_path: str | None = None
    """Where image tiles are kept between runs; None: `tiles` in output_dir."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Checks rules between sections."""
        for name, optimizer in self.optimizers.items():
            if optimizer.muon_learning_rate != 0.0:
                raise ValueError(
                    f"{name}_optimizer.muon_learning_rate must be 0: here it is AdamW throughout"
                )

    @property
    @abstractmethod
    def optimizers(self) -> dict[str, OptimizerConfig]:
        """By group of parameters."""

    @property
    def paths(self) -> DatasetPaths:
        """The dataset's folders."""
        return dataset_paths(self.dataset_root, self.splits_path)


@dataclass(frozen=True)
class TrainGRPOConfig(ReinforcementConfig):
    """Configuration of `rl/train_grpo.py`."""

    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    generator_optimizer: OptimizerConfig = field(default_factory=reinforcement_optimizer)
    """Of shared and generation blocks and action tables."""

    def __post_init__(self) -> None:
        """Checks rules between sections."""
        super().__post_init__()
        if self.objective.tau > self.rollout.num_denoising_steps:
            raise ValueError(
                f"objective.tau ({self.objective.tau}) must not exceed rollout.num_denoising_steps "
                f"({self.rollout.num_denoising_steps})"
            )

    @property
    def optimizers(self) -> dict[str, OptimizerConfig]:
        """By group of parameters."""
        return {"generator": self.generator_optimizer}


@dataclass(frozen=True)
class TrainHybridConfig(TrainGRPOConfig):
    """Configuration of `rl/train_hybrid.py`."""

    rollout: HybridRolloutConfig = field(default_factory=HybridRolloutConfig)
    objective: HybridObjectiveConfig = field(default_factory=HybridObjectiveConfig)
    refiner_optimizer: OptimizerConfig = field(default_factory=reinforcement_optimizer)
    """Of the refinement blocks."""

    @property
    def optimizers(self) -> dict[str, OptimizerConfig]:
        """By group of parameters; only of those that an objective trains."""
        groups = {}
        if self.objective.generator:
            groups["generator"] = self.generator_optimizer
        if self.objective.offline or self.objective.online:
            groups["refiner"] = self.refiner_optimizer
        return groups
