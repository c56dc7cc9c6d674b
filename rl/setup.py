"""What both scripts set up before their loop, and what they do around a step."""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from drivefine_agent.data.atomic import atomic_folder, write_bytes
from drivefine_agent.data.folder_lock import FolderLock
from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.diffusion.decoding import DecodingOptions
from drivefine_agent.errors import DataError
from drivefine_agent.loaded_planners import model_folder
from drivefine_agent.planner import Planner
from drivefine_agent.provenance import as_record, parent_record
from drivefine_agent.scoring.cache import SceneCache
from drivefine_agent.training.demonstrations import Demonstrations, load_demonstrations
from drivefine_agent.training.metrics import MetricLog
from drivefine_agent.training.objectives import Instructions
from drivefine_agent.training.optimization import learning_rate_factor
from drivefine_agent.training.phase import batch_order, num_epoch_steps
from drivefine_agent.training.rollouts import (
    Rollouts,
    joined,
    remove_parts_of_ranks_from,
    step_part_path,
    write_part,
)
from drivefine_agent.training.scenes import SplitScenes, load_split_scenes
from drivefine_agent.training.split_guard import check_splits, log_training_data
from drivefine_agent.training.torch_settings import set_up_torch
from rl.config import HybridRolloutConfig, ReinforcementConfig, TrainGRPOConfig
from rl.engine import Engine
from rl.monitors import Means
from rl.policy import PolicyBatch, PolicyLogProbs, PolicyModule, policy_log_probs
from rl.predicted_reward import PredictedReward
from rl.rewards import RewardScorer, Scores, reward_scorer, scorable_scenes
from rl.rollout import SceneInputs
from rl.run_state import (
    Provenance,
    check_same_configuration,
    resume_run_state,
    save_run_state,
    weights_hash,
)

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


_GROUP_PARTS = {
    "generator": ("language", "action"),
    "refiner": ("refinement",),
    "head": ("pose_head",),
}
_ENCODE_SCENES = 32  # images at a time through the tower, when their tokens are kept


class TrainingScenes:
    """The scenes to learn from, as the model reads them; vision is frozen, so its tokens are made once."""

    def __init__(self, demonstrations: Demonstrations, keep: NDArray[np.int64], device: torch.device) -> None:
        """Args.

        demonstrations: all scenes of the split.
        keep: positions of those to use.
        device: of the model.
        """
        self._demonstrations = demonstrations
        self._keep = keep
        self._device = device
        self._visual: Tensor | None = None

    def __len__(self) -> int:
        return len(self._keep)

    def tokens(self, index: NDArray[np.int64]) -> list[str]:
        """Scene tokens at positions (B,)."""
        return [self._demonstrations.tokens[i] for i in self._keep[index]]

    def human_poses(self, index: NDArray[np.int64]) -> NDArray[np.float64]:
        """(B, 8, 3) what the recorded drivers did."""
        return self._demonstrations.poses[self._keep[index], 0]

    @torch.no_grad()
    def keep_visual(self, model: DriveFineModel, max_gb: float) -> None:
        """Encodes all images now, if their tokens fit into memory."""
        size = len(self) * model.config.num_visual_tokens * model.config.text_config.hidden_size
        if size * next(model.parameters()).element_size() > max_gb * 1e9:
            return
        parts = [
            model.encode_images(self._tiles(np.arange(start, min(start + _ENCODE_SCENES, len(self)))))
            for start in range(0, len(self), _ENCODE_SCENES)
        ]
        self._visual = torch.cat(parts).cpu()

    @torch.no_grad()
    def inputs(self, model: DriveFineModel, index: NDArray[np.int64]) -> SceneInputs:
        """What the model reads of the scenes at positions (B,)."""
        if self._visual is None:
            visual = model.encode_images(self._tiles(index))
        else:
            visual = self._visual[torch.from_numpy(index)].to(self._device)
        rows, scenes = self._keep[index], self._demonstrations
        lengths = None
        if scenes.context_lengths is not None:
            lengths = torch.from_numpy(scenes.context_lengths[rows, 0]).to(self._device)
        return SceneInputs(visual, torch.from_numpy(scenes.context_ids[rows, 0]).to(self._device), lengths)

    def status(self, index: NDArray[np.int64]) -> Tensor:
        """(B, 20) ego status of the scenes at positions (B,), for a diffusion head."""
        status = self._demonstrations.status
        assert status is not None
        return torch.from_numpy(status[self._keep[index], 0]).to(self._device)

    def _tiles(self, index: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._demonstrations.tiles[self._keep[index]]).to(self._device)


@dataclass
class Run:
    """A run, ready for its next step."""

    config: ReinforcementConfig
    engine: Engine
    planner: Planner
    """Configuration and tokenizers; its model belongs to the engine now."""
    reference: DriveFineModel | None
    """Frozen copy of the model that the run starts from; None where no objective asks for it."""
    instructions: Instructions
    scenes: TrainingScenes
    rewards: RewardScorer
    predicted: PredictedReward | None
    """The learned scorer's part of the reward; None without one."""
    metrics: MetricLog | None
    """On the main process."""
    provenance: Provenance
    step: int
    """Finished steps."""
    num_steps: int
    lock: FolderLock | None
    """Of the run's folder, on the main process."""
    scored: list[Rollouts] = field(default_factory=list)
    """Of the present step, where they are to be kept."""

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def remaining_steps(self, title: str) -> Iterator[int]:
        """Steps that are still to be done, with a progress bar; counts them, and writes checkpoints."""
        steps = range(self.step, self.num_steps)
        bar = tqdm(
            steps,
            desc=title,
            unit="step",
            initial=self.step,
            total=self.num_steps,
            disable=not self.engine.is_main,
        )
        for step in bar:
            yield step
            self.step = step + 1
            if self.step % self.config.run.checkpoint_every == 0:
                self.save()

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This process's scenes of a step."""
        run = self.config.run
        index = batch_order(len(self.scenes), run.batch_size, run.seed, "rollout order", step)
        own = self.engine.share(np.arange(run.batch_size))  # places in the step's batch
        visits = step * run.batch_size + own
        parts = range(0, len(own), run.micro_batch_scenes)
        return [
            MicroBatch(
                index[own[start : start + run.micro_batch_scenes]],
                visits[start : start + run.micro_batch_scenes].tolist(),
                share=len(own[start : start + run.micro_batch_scenes]) / len(own),
                is_last=start == parts[-1],
            )
            for start in parts
        ]

    def poses(self, actions: Tensor) -> NDArray[np.float64]:
        """(..., 8, 3) of complete answers (..., 24)."""
        return self.planner.action_tokenizer.decode(actions.cpu().numpy())

    def predict(self, scenes: SceneInputs, answers: Sequence[Tensor]) -> Sequence[NDArray[np.float64] | None]:
        """(B, P) scores that the learned scorer predicts of each group of answers (B, P, 24), in one pass.

        None of each without a scorer.
        """
        if self.predicted is None:
            return [None] * len(answers)
        ends = np.cumsum([group.shape[1] for group in answers])[:-1]
        return np.split(self.predicted(scenes, torch.cat(list(answers), dim=1)), ends, axis=1)

    def collect(
        self,
        ticket: int,
        part: MicroBatch,
        actions: Tensor,
        kind: str,
        predicted: NDArray[np.float64] | None,
    ) -> Scores:
        """The scores of a ticket, with what was predicted of its answers; kept for a scorer, if so wanted.

        Args:
          ticket: of `rewards.submit`.
          part: its scenes.
          actions: (B, P, 24) its answers.
          kind: `generated` or `refined`, for the record.
          predicted: (B, P), see `predict`.
        """
        assert isinstance(self.config, TrainGRPOConfig)
        scores = self.rewards.collect(ticket)
        if self.config.rollout.save_scored:
            kinds, tokens = [kind] * actions.shape[1], self.scenes.tokens(part.index)
            self.scored.append(Rollouts.of_scenes(tokens, kinds, actions.cpu().numpy(), scores.sub_scores))
        if predicted is None:
            return scores
        return replace(scores, predicted=predicted, predicted_weight=self.config.reward.scorer_weight)

    def log_probs(self, model: DriveFineModel, batch: PolicyBatch) -> PolicyLogProbs:
        """Log-probabilities under a model that the engine does not train, or not now; without gradient."""
        assert isinstance(self.config, TrainGRPOConfig)
        with torch.no_grad():
            return policy_log_probs(model, batch, **policy_settings(self.config))

    def update(self, step: int) -> dict[str, float]:
        """One optimizer update at the step's learning rate; returns what is worth logging.

        Raises:
          FloatingPointError: loss or gradient is not finite; names the step.
        """
        factors = {
            name: learning_rate_factor(step, self.num_steps, optimizer.warmup_share, optimizer.final_share)
            for name, optimizer in self.config.optimizers.items()
        }
        if self.scored:
            folder = Path(self.config.output_dir) / "rollouts"
            write_part(step_part_path(folder, step, self.engine.rank), joined(self.scored))
            if self.engine.is_main:
                remove_parts_of_ranks_from(folder, step, self.engine.world_size)
            self.scored.clear()
        try:
            norms = self.engine.step(factors)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"step {step}: {error}; lower the optimizers' learning_rate and start the same command "
                "again, which goes on from the last checkpoint"
            ) from error
        scalars = {f"{name}/grad_norm": norm for name, norm in norms.items()}
        for name, optimizer in self.config.optimizers.items():
            scalars[f"{name}/learning_rate"] = optimizer.learning_rate * factors[name]
        return scalars

    def is_logged(self, step: int) -> bool:
        """Whether a step's numbers are wanted."""
        return step % self.config.run.log_every == 0 or step == self.num_steps - 1

    def log(self, step: int, means: Means, scalars: Mapping[str, float], clock: StepClock) -> None:
        """Writes a step's numbers, averaged over the processes; every process must call this."""
        averaged = self.engine.mean(*means.result())
        if self.metrics is not None:
            finite = {name: value for name, value in averaged.items() if math.isfinite(value)}
            self.metrics.add("rl", step + 1, finite | dict(scalars) | clock.scalars())

    def save(self) -> Path:
        """Writes a checkpoint; every process must call this."""
        folder = Path(self.config.output_dir) / "checkpoints"
        return save_run_state(folder, self.step, self.engine, self.planner, self.provenance)

    def finish(self) -> Path:
        """Writes the last checkpoint and the run's result, `model/`."""
        checkpoint, target = self.save(), Path(self.config.output_dir) / "model"
        if self.engine.is_main:
            with atomic_folder(target) as part:
                shutil.copytree(checkpoint / "model", part, dirs_exist_ok=True)
                shutil.copyfile(checkpoint / "provenance.json", part / "provenance.json")
        return target

    def close(self) -> None:
        """Ends workers and leaves the group of processes."""
        self.rewards.close()
        if self.metrics is not None:
            self.metrics.close()
        self.engine.close()
        if self.lock is not None:
            self.lock.release()


class StepClock:
    """How long a step takes, and how much of it is spent waiting for rewards."""

    def __init__(self, rewards: RewardScorer) -> None:
        """Starts the clock; args: rewards, that are waited for."""
        self._rewards = rewards
        self._start = time.perf_counter()
        self._waited_s = rewards.waited_s

    def scalars(self) -> dict[str, float]:
        """Seconds since the start, and the share of them."""
        took = time.perf_counter() - self._start
        return {
            "time/step_s": took,
            "time/reward_wait_share": (self._rewards.waited_s - self._waited_s) / took,
        }


@dataclass(frozen=True)
class MicroBatch:
    """Some scenes of a step."""

    index: NDArray[np.int64]
    """(B,) positions in `TrainingScenes`."""
    visits: Sequence[int]
    """(B,) number of each scene's visit in the run: the seed of its random numbers."""
    share: float
    """Of the process's scenes of the step: the weight of the loss."""
    is_last: bool


def policy_settings(config: TrainGRPOConfig) -> dict[str, Any]:
    """How the policy is evaluated: as it was sampled."""
    settings: dict[str, Any] = {
        "tau": config.objective.tau,
        "num_steps": config.rollout.num_denoising_steps,
        "temperature": config.rollout.temperature,
    }
    if isinstance(config.rollout, HybridRolloutConfig):
        settings["refine_temperature"] = config.rollout.refine_temperature
    return settings


def begin_run(
    config: ReinforcementConfig,
    stage: str,
    needs_reference: bool,
    make_policy: Callable[[DriveFineModel], nn.Module] | None = None,
    decoders: Sequence[str] = ("masked", "autoregressive"),
) -> Run:
    """Loads everything, checks everything, and goes on from the newest checkpoint if there is one.

    Args:
      config: of any of the scripts.
      stage: the script's name in the checkpoints' card.
      needs_reference: whether a frozen copy of the starting model is wanted.
      make_policy: the module that the engine wraps; None: `PolicyModule`, for action tokens.
      decoders: models that the script can train, by `DriveFineConfig.decoder_type`.

    Raises:
      DataError: dataset, scene cache, model or checkpoint are missing or do not fit; or the scenes are test
        data (`training/split_guard.py`).
    """
    set_up_torch(config.run.num_threads, config.run.deterministic)
    parent = model_folder(Path(config.checkpoint_path))
    planner = Planner.from_pretrained(parent, DecodingOptions())
    if "refiner" in config.optimizers and not planner.model.config.has_refiner:
        raise DataError(
            f"the model in {parent} has no refinement expert (n_refine = 0) to train: use rl/train_grpo.py"
        )
    if planner.model.config.decoder_type not in decoders:
        raise DataError(
            f"the model in {parent} was trained with model.decoder={planner.model.config.decoder_type}; this "
            f"script trains {', '.join(decoders)}: start rl/train_diffusion.py for diffusion heads, "
            "rl/train_grpo.py for all others"
        )
    cache = SceneCache(Path(config.metric_cache_path))
    split = load_split_scenes(config.paths, config.train_test_split, config.max_scenes, False)
    check = check_splits(split, None, config.paths, config)
    keep = scorable_scenes(cache, [window.token for window in split.windows], config.train_test_split)
    if len(keep) == 0:
        raise DataError(f"split {split.name} has no scene to learn from")

    scorer = None if config.reward.scorer_path is None else Path(config.reward.scorer_path)
    needs_frozen = needs_reference or scorer is not None
    frozen = copy.deepcopy(planner.model).requires_grad_(False) if needs_frozen else None
    if make_policy is None:
        assert isinstance(config, TrainGRPOConfig)
        policy: nn.Module = PolicyModule(planner.model, **policy_settings(config))
    else:
        policy = make_policy(planner.model)
    engine = Engine.create(policy, parameter_groups(planner.model, config), config.optimizers, config.engine)
    engine.share(np.arange(config.run.batch_size))  # refuses a batch that the processes cannot share
    if frozen is not None:
        frozen.to(engine.device)  # type: ignore[arg-type]
        if config.engine.precision == "bfloat16":
            frozen.to(torch.bfloat16)  # type: ignore[arg-type]
    instructions = Instructions(planner.prompts, engine.device)
    predicted = None
    if scorer is not None and frozen is not None:
        predicted = PredictedReward.load(scorer, parent, frozen, instructions)

    output = Path(config.output_dir)
    lock = claim_run_folder(output, engine, config)
    tiles = output / "tiles" if config.tile_cache_path is None else Path(config.tile_cache_path)
    demonstrations = load_once_each(split, planner, tiles, engine)
    scenes = TrainingScenes(demonstrations, keep, engine.device)
    tokens = scenes.tokens(np.arange(len(scenes)))
    data = check.training_data(stage, tokens, "scenes that cannot be scored")
    if engine.is_main:
        check.log_warnings()
        log_training_data(data)
    resumed = resume_run_state(output / "checkpoints", engine, asdict(config))
    with engine.inference() as model:
        scenes.keep_visual(model, config.run.visual_cache_gb)
    num_steps = config.run.num_epochs * num_epoch_steps(len(scenes), config.run.batch_size)
    provenance = Provenance(
        configuration=asdict(config),
        data=as_record(data),
        parent=parent_record(parent)
        | {"weights_sha256": weights_hash(parent)}
        | ({} if scorer is None else {"scorer": parent_record(scorer)}),
        reward_weights=config.reward.weights,
        seeds={"run": config.run.seed},
    )
    return Run(
        config=config,
        engine=engine,
        planner=planner,
        reference=frozen if needs_reference else None,
        instructions=instructions,
        scenes=scenes,
        rewards=reward_scorer(config.reward, Path(config.metric_cache_path)),
        predicted=predicted,
        metrics=MetricLog(output) if engine.is_main else None,
        provenance=provenance,
        step=0 if resumed is None else resumed.step,
        num_steps=min(num_steps, config.run.max_steps or num_steps),
        lock=lock,
    )


def parameter_groups(
    model: DriveFineModel, config: ReinforcementConfig
) -> dict[str, dict[str, torch.nn.Parameter]]:
    """What is trained, by group and name."""
    groups = {}
    for group in config.optimizers:
        wanted = {id(p) for part in _GROUP_PARTS[group] for p in model.parameters_of(part)}
        groups[group] = {name: p for name, p in model.named_parameters() if id(p) in wanted}
    return groups


def claim_run_folder(folder: Path, engine: Engine, config: ReinforcementConfig) -> FolderLock | None:
    """Locks the folder and keeps the configuration in it, or checks it against the one that is there.

    Returns:
      The lock, on the main process.

    Raises:
      DataError: another run is writing into the folder, or it holds one with another configuration; names the
        keys that differ.
    """
    error: DataError | None = None
    lock: FolderLock | None = None
    if engine.is_main:
        file, wanted = folder / "config.json", asdict(config)
        try:
            lock = FolderLock(folder)
            if file.is_file():
                check_same_configuration(file, read_json_object(file), wanted)
            write_bytes(file, (json.dumps(wanted, indent=1) + "\n").encode())
        except DataError as problem:
            error = problem
            if lock is not None:
                lock.release()
    engine.raise_together(error)
    return lock


def load_once_each(split: SplitScenes, planner: Planner, tiles: Path, engine: Engine) -> Demonstrations:
    """The split's arrays; the main process makes the tiles that the others then find."""
    scenes = SplitScenes(split.name, split.windows, split.sensor_root)  # no maps: no bird's-eye grids here
    demonstrations: Demonstrations | None = None
    error: DataError | None = None
    if engine.is_main:
        try:
            demonstrations = load_demonstrations(scenes, planner.prompts, tiles)
        except DataError as problem:
            error = problem
    engine.raise_together(error)
    if demonstrations is None:
        demonstrations = load_demonstrations(scenes, planner.prompts, tiles, show_progress=False)
    return demonstrations
