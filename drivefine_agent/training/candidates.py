"""The candidates of a scene that a learned scorer is trained on: what a planner writes, and worse.

Samples of the generation expert at several temperatures, each of them refined as when driving, the recorded
driver's answer, and spoilt versions of it. The last two make sure that good and bad ones are seen in every
scene, however the planner does there.

Shapes: B scenes, N candidates, L = 24 slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drivefine_agent.diffusion.decoding import DecodingOptions, read_out
from drivefine_agent.diffusion.schedule import ScheduleName
from drivefine_agent.model.backbone.cache import ContextCache
from drivefine_agent.planner import generate, refiner_logits
from drivefine_agent.tokenizer import ActionTokenizer
from drivefine_agent.training.corruptions import displace_numbers, drift
from drivefine_agent.training.objectives import Instructions
from drivefine_agent.training.seeds import derived_seed, generator_for

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


GENERATED, REFINED, HUMAN, SPOILT = "generated", "refined", "human", "spoilt"


@dataclass(frozen=True)
class CandidateConfig:
    """How many of which kind."""

    temperatures: tuple[float, ...] = (1.0, 0.5, 1.5)
    """Of the generation expert."""
    num_samples: int = 6
    """At each temperature; each sample is a candidate, and so is its refinement."""
    num_spoilt: int = 6
    """Spoilt versions of the recorded driver's answer, by turns `drift` and `displace_numbers`."""
    num_denoising_steps: int = 12
    schedule: ScheduleName = "cosine"

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not self.temperatures or min(self.temperatures) <= 0.0:
            raise ValueError(f"candidates.temperatures must be positive, got {list(self.temperatures)}")
        if self.num_samples < 1 or self.num_spoilt < 0:
            raise ValueError(
                "candidates.num_samples must be at least 1 and candidates.num_spoilt not negative, got "
                f"{self.num_samples} and {self.num_spoilt}"
            )
        DecodingOptions(num_steps=self.num_denoising_steps, schedule=self.schedule)

    def kinds(self, has_refinement: bool) -> tuple[str, ...]:
        """(N,) kind of each candidate, in the order of `draw_candidates`."""
        sampled = ([GENERATED] * self.num_samples) + ([REFINED] * self.num_samples if has_refinement else [])
        return (*sampled * len(self.temperatures), HUMAN, *[SPOILT] * self.num_spoilt)


@torch.no_grad()
def draw_candidates(
    model: DriveFineModel,
    context: ContextCache,
    instructions: Instructions,
    human_poses: NDArray[np.float64],
    config: CandidateConfig,
    seed: int,
    scene_numbers: Sequence[int],
) -> Tensor:
    """(B, N, L) action ids, N as `config.kinds` lists them.

    Args:
      model: the planner.
      context: of the scenes.
      instructions: of both experts.
      human_poses: (B, 8, 3) the recorded driver's.
      config: how many of which kind.
      seed: of the run.
      scene_numbers: (B,) number of each scene in its split: a scene's candidates do not depend on the batch.
    """
    parts = []
    for row, temperature in enumerate(config.temperatures):
        options = DecodingOptions(
            num_steps=config.num_denoising_steps,
            schedule=config.schedule,
            temperature=temperature,
            num_samples=config.num_samples,
        )
        generators = [generator_for(seed, f"candidates {row}", number) for number in scene_numbers]
        drafts = generate(model, context, instructions.predict, options, generators).actions
        parts.append(drafts)
        if model.config.n_refine > 0:
            parts.append(read_out(refiner_logits(model, context, instructions.refine, drafts), options))
    spoilt = [
        spoil(poses, config.num_spoilt, np.random.default_rng(derived_seed(seed, "spoilt", number)))
        for poses, number in zip(human_poses, scene_numbers, strict=True)
    ]
    driven = np.concatenate([human_poses[:, None], np.stack(spoilt)], axis=1)  # (B, 1 + S, 8, 3)
    answers = ActionTokenizer(model.config.action_spec).encode(driven)
    return torch.cat([*parts, torch.from_numpy(answers).to(context.hidden.device)], dim=1)


def spoil(poses: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(count, 8, 3) spoilt versions of a trajectory (8, 3): half drift, half have outliers."""
    copies = np.repeat(poses[None], count, axis=0)
    drifted, displaced = drift(copies, rng), displace_numbers(copies, rng)
    return np.where((np.arange(count) % 2 == 0)[:, None, None], drifted, displaced)
