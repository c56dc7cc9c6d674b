"""One phase of a run: what is trained, with which optimizer, how far it got, how it is kept and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drivefine_agent.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    load_state,
    load_weights,
    remove_older,
    save_checkpoint,
)
from drivefine_agent.training.optimization import (
    OptimizerConfig,
    WeightAverage,
    build_optimizer,
    learning_rate_factor,
    optimizer_step,
    set_learning_rate,
)
from drivefine_agent.training.seeds import generator_for

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


PHASES = ("perception", "generator", "refiner")
"""In the order in which a run goes through them."""
VISION_PARTS = ("vision", "projector")
LANGUAGE_PARTS = ("language", "action")
PERCEPTION_PARTS = (*VISION_PARTS, "perception")
REFINER_PARTS = ("refinement",)
POSE_HEAD_PARTS = ("pose_head",)
"""Of the diffusion-head baseline; trained in the phase `generator`."""
_GROUP_OF_PART = dict.fromkeys(("projector", "perception", "refinement", "pose_head"), "language")


@dataclass
class Phase:
    """State of a phase; `step` counts its finished optimizer steps."""

    name: str
    model: DriveFineModel
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    config: OptimizerConfig
    num_steps: int
    folder: Path
    """Of the run's checkpoints."""
    card: Mapping[str, Any] | None = None
    """What the model learns from; written into every checkpoint."""
    step: int = 0
    is_done: bool = False
    """Whether the phase was finished before; the model then holds its result, or that of a later phase."""

    @classmethod
    def begin_or_resume(
        cls,
        name: str,
        model: DriveFineModel,
        parts: Sequence[str],
        config: OptimizerConfig,
        average_decay: float,
        num_steps: int,
        folder: Path,
        card: Mapping[str, Any] | None = None,
    ) -> Phase:
        """Starts a phase, goes on from the run's newest checkpoint, or finds that the phase is done.

        Args:
          name: one of `PHASES`.
          model: as the phase before left it.
          parts: of the model (`DriveFineModel.parameters_of`) to train; all others are left alone.
          config: of the optimizer.
          average_decay: of the weight average.
          num_steps: of this phase.
          folder: of the run's checkpoints.
          card: what the model learns from.
        """
        parameters, kinds = trained_parameters(model, parts)
        optimizer = build_optimizer(parameters, kinds.__getitem__, config)
        average = WeightAverage(parameters, average_decay)
        phase = cls(name, model, optimizer, average, config, num_steps, folder, card)
        newest = checkpoints(folder)[-1:]
        if not newest:
            return phase
        remove_older(folder)
        state = load_state(newest[0])
        phase.is_done = PHASES.index(state["phase"]) > PHASES.index(name) or (
            state["phase"] == name and state["is_finished"]
        )
        if phase.is_done:
            phase.step = num_steps
        if state["phase"] == name and phase.is_done:
            load_weights(newest[0], model)
        elif state["phase"] == name:
            load_checkpoint(newest[0], model, optimizer, average)
            phase.step = state["phase_step"]
        return phase

    def update(self, loss: Tensor) -> dict[str, float]:
        """One optimizer step; returns what is worth logging.

        Raises:
          FloatingPointError: loss or gradient is not finite; names phase and step.
        """
        factor = learning_rate_factor(
            self.step, self.num_steps, self.config.warmup_share, self.config.final_share
        )
        set_learning_rate(self.optimizer, factor)
        try:
            grad_norm = optimizer_step(loss, self.optimizer, self.average, self.config.max_grad_norm)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{self.name}, step {self.step}: {error}; lower its optimizer.learning_rate and start the "
                "same command again, which goes on from the last checkpoint"
            ) from error
        self.step += 1
        return {"loss": loss.item(), "grad_norm": grad_norm, "lr": self.config.learning_rate * factor}

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Lends the model the averaged weights."""
        self.average.swap()
        try:
            yield
        finally:
            self.average.swap()

    def save(self, is_finished: bool = False) -> Path:
        """Writes a checkpoint; the run keeps the newest only."""
        name = f"{PHASES.index(self.name) + 1}_{self.name}_{self.step:07d}" + ("_done" if is_finished else "")
        state = {"phase": self.name, "phase_step": self.step, "is_finished": is_finished}
        return save_checkpoint(
            self.folder, name, self.model, self.optimizer, self.average, state, card=self.card
        )

    def finish(self, before_saving: Callable[[], None] = lambda: None) -> None:
        """Puts the averaged weights into the model for good and keeps it: the phase's result."""
        self.average.swap()
        before_saving()
        self.save(is_finished=True)
        self.is_done = True


def num_epoch_steps(num_scenes: int, batch_size: int) -> int:
    """Steps per epoch; the last batch is filled from the start of the epoch's order."""
    return math.ceil(num_scenes / batch_size)


def batch_order(num_scenes: int, batch_size: int, seed: int, purpose: str, step: int) -> NDArray[np.int64]:
    """(batch_size,) scenes of one optimizer step: each epoch visits every scene, in an order of its own."""
    per_epoch = num_epoch_steps(num_scenes, batch_size)
    order = torch.randperm(num_scenes, generator=generator_for(seed, purpose, step // per_epoch)).numpy()
    return np.resize(order, per_epoch * batch_size)[step % per_epoch * batch_size :][:batch_size]


def trained_parameters(
    model: DriveFineModel, parts: Sequence[str]
) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Trainable parameters of the parts by name, and the optimizer group of each."""
    part_of = {id(parameter): part for part in parts for parameter in model.parameters_of(part)}
    named = {name: p for name, p in model.named_parameters() if id(p) in part_of}
    return named, {name: _GROUP_OF_PART.get(part_of[id(p)], part_of[id(p)]) for name, p in named.items()}
