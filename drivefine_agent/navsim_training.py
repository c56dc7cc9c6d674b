"""What NAVSIM's `run_training.py` needs beyond planning: losses, optimizer, schedule, our own checkpoint.

NAVSIM wraps an agent in a Lightning module of its own, so the loop, devices, precision and gradient clipping
are Lightning's (`trainer.params`). The losses, the optimizer's groups and the schedule are those of
tools/train_sft.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from drivefine_agent.data.atomic import atomic_folder
from drivefine_agent.data.dataset_paths import DatasetPaths, navsim_split_folders
from drivefine_agent.errors import DataError
from drivefine_agent.features import trim_contexts
from drivefine_agent.navsim_api import find_navsim
from drivefine_agent.planner import Planner
from drivefine_agent.provenance import TrainingData, as_record, parent_record, write_card
from drivefine_agent.training.config import RefinerConfig
from drivefine_agent.training.demonstrations import Batch
from drivefine_agent.training.objectives import Instructions, generator_loss, refiner_loss
from drivefine_agent.training.optimization import OptimizerConfig, build_optimizer, learning_rate_factor
from drivefine_agent.training.phase import LANGUAGE_PARTS, REFINER_PARTS, VISION_PARTS, trained_parameters
from drivefine_agent.training.seeds import generator_for
from drivefine_agent.training.split_guard import Samples, check_samples, log_training_data

_logger = logging.getLogger(__name__)

ObjectiveName = Literal["generator", "refiner"]
_PARTS: dict[str, tuple[str, ...]] = {
    "generator": (*VISION_PARTS, *LANGUAGE_PARTS),
    "refiner": REFINER_PARTS,
}


@dataclass(frozen=True)
class Consent:
    """To training on test data, given twice; see training/split_guard.py."""

    allow_test_split: bool = False
    i_train_on_test_tokens_of: str | None = None


class NavsimTraining:
    """The state of a training run inside NAVSIM."""

    def __init__(
        self,
        planner: Planner,
        objective: ObjectiveName,
        optimizer: Mapping[str, Any],
        label_smoothing_bins: float,
        seed: int,
        started_from: Path | None,
        consent: Consent,
    ) -> None:
        """Freezes what the objective does not train: data-parallel training wants a gradient for all else.

        Args:
          planner: whose model is trained.
          objective: which expert to train.
          optimizer: fields of OptimizerConfig.
          label_smoothing_bins: width of the targets [bins].
          seed: of masks and spoilt answers.
          started_from: folder of the checkpoint; None: random weights.
          consent: to training on test data.

        Raises:
          ValueError: unknown objective, or the model has no refinement expert to train.
        """
        if objective not in _PARTS:
            raise ValueError(f"objective must be one of {', '.join(_PARTS)}, got {objective!r}")
        if objective == "refiner" and not planner.model.config.has_refiner:
            raise ValueError("objective=refiner needs a refinement expert, got a model with n_refine=0")
        self.planner = planner
        self.objective = objective
        self.label_smoothing_bins = label_smoothing_bins
        self.config = OptimizerConfig(**optimizer)
        self.seed = seed
        self.num_steps: int | None = None
        """Optimizer steps of the whole run; the callback asks Lightning before the optimizer is built."""
        self.data: TrainingData | None = None
        """What is learned from; set by the callback."""
        self.started_from = started_from
        self.consent = consent
        self._random: torch.Generator | None = None
        parameters, _ = trained_parameters(planner.model, _PARTS[objective])
        trained = {id(parameter) for parameter in parameters.values()}
        for parameter in planner.model.parameters():
            parameter.requires_grad_(id(parameter) in trained)

    def loss(self, features: dict[str, Tensor], targets: dict[str, Tensor], is_validation: bool) -> Tensor:
        """() loss of a batch: `generator_loss` or `refiner_loss` of training/objectives.py.

        Args:
          features: of `DriveFineFeatureBuilder`, batched, on the model's device.
          targets: of `TokenizedTrajectoryTargetBuilder`, batched.
          is_validation: draw the same masks in every epoch, so that epochs compare.
        """
        planner = self.planner
        context_ids, lengths = trim_contexts(features)
        poses = targets["drivefine_poses"].double().cpu().numpy()
        batch = Batch(
            features["drivefine_tiles"], context_ids, lengths, targets["drivefine_actions"], poses
        ).to(planner.device)
        instructions = Instructions(planner.prompts, planner.device)
        generator = generator_for(self.seed, "navsim validation", 0) if is_validation else self._generator()
        if self.objective == "refiner":
            config = RefinerConfig(label_smoothing_bins=self.label_smoothing_bins)
            return refiner_loss(
                planner.model, batch, instructions, planner.action_tokenizer, config, generator
            ).total
        return generator_loss(
            planner.model,
            batch,
            instructions.predict,
            generator,
            label_smoothing_bins=self.label_smoothing_bins,
        ).total

    def optimizers(self) -> torch.optim.Optimizer | dict[str, Any]:
        """The optimizer; with a warm-up and a cosine per step where the number of steps is known."""
        parameters, kinds = trained_parameters(self.planner.model, _PARTS[self.objective])
        optimizer = build_optimizer(parameters, kinds.__getitem__, self.config)
        if self.num_steps is None:
            return optimizer
        num_steps, config = self.num_steps, self.config
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(
                min(step, num_steps), num_steps, config.warmup_share, config.final_share
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def check_data(self, dataset: Any) -> None:
        """Refuses test data unless told twice, and notes what is learned from.

        Args:
          dataset: NAVSIM's `Dataset` or `CacheOnlyDataset`.

        Raises:
          DataError: it holds test data and the consents are not both given.
        """
        navsim = find_navsim()
        folders = navsim_split_folders()
        folders += [navsim / "planning" / "script" / "config" / "common"] if navsim is not None else []
        try:
            paths = DatasetPaths.from_environment()
            folders.append(paths.splits)
        except DataError as error:  # cached features are trained on where the dataset itself may be absent
            paths = None
            _logger.warning("the dataset's own test splits and logs are not compared: %s", error)
        self.data = check_samples("navsim_run_training", samples_of(dataset), folders, paths, self.consent)
        log_training_data(self.data)

    def save(self, folder: Path) -> None:
        """Writes the model beside the old one, then exchanges them.

        A trained generator also becomes the refiner's start. A run killed between the two renames leaves the
        old model as `.<name>.old`; the next save puts it back.
        """
        if self.objective == "generator" and self.planner.model.config.n_refine > 0:
            self.planner.model.backbone.copy_generation_to_refinement()
        with atomic_folder(folder) as part:
            self.planner.save_pretrained(part)
            if self.data is not None:
                parent = None if self.started_from is None else parent_record(self.started_from)
                write_card(part, {"data": as_record(self.data), "parent": parent})

    def callbacks(self) -> list[Any]:
        """Lightning's callbacks: number of steps and training data at the start, the model after every epoch.

        Raises:
          ImportError: pytorch_lightning, which NAVSIM brings, is not there.
        """
        from pytorch_lightning import Callback

        training = self

        class DriveFineCallback(Callback):  # type: ignore[misc,unused-ignore]
            def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
                training.num_steps = int(trainer.estimated_stepping_batches)
                training.check_data(trainer.train_dataloader.dataset)

            def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
                if trainer.is_global_zero:
                    training.save(Path(trainer.default_root_dir) / "model")

        return [DriveFineCallback()]

    def _generator(self) -> torch.Generator:
        """Random numbers of training, other ones on every rank."""
        if self._random is None:
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank = torch.distributed.get_rank() if distributed else 0
            self._random = generator_for(self.seed, "navsim training", rank)
        return self._random


def samples_of(dataset: Any) -> Samples:
    """Tokens and logs of a training set of NAVSIM, from scenes or from its cache of features.

    Raises:
      DataError: it is neither.
    """
    name = _split_name() or f"the samples of NAVSIM's {type(dataset).__name__}"
    if hasattr(dataset, "_scene_loader"):
        by_log = dataset._scene_loader.get_tokens_list_per_log()
        tokens = [token for tokens in by_log.values() for token in tokens]
        return Samples(name, frozenset(tokens), frozenset(by_log))
    if hasattr(dataset, "_valid_cache_paths"):  # token -> <cache>/<log>/<token>
        folders = dataset._valid_cache_paths
        logs = {Path(folder).parent.name for folder in folders.values()}
        return Samples(name, frozenset(folders), frozenset(logs))
    raise DataError(
        f"NAVSIM's training sets hold a scene loader or cached features, got {type(dataset).__name__}: it "
        "cannot be told whether there are test data among its samples; use one of these"
    )


def _split_name() -> str | None:
    """What NAVSIM's command line calls the split; None outside Hydra."""
    from hydra.core.hydra_config import HydraConfig

    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    name = choices.get("train_test_split")
    return None if name is None else str(name)
