"""How a model does on held-out scenes: the loss, and the distance of its plans to what the driver did.

The distance is a cheap guide during training. What counts is the PDM score, see `tools/evaluate.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drivefine_agent.diffusion.decoding import DecodingOptions
from drivefine_agent.planner import plan_tokens
from drivefine_agent.pose_diffusion import plan_poses
from drivefine_agent.tokenizer import ActionTokenizer
from drivefine_agent.training.demonstrations import Batch, Demonstrations
from drivefine_agent.training.objectives import Instructions, generator_loss, noise_loss, visual_of
from drivefine_agent.training.seeds import generator_for

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


_MASK_SEED = 20  # ours, fixed: every validation of every run draws the same masks


@dataclass(frozen=True)
class Validation:
    """Means over held-out scenes."""

    loss: float
    """[nat] generator loss per slot, not smoothed; of a diffusion head the noise's mean squared error."""
    displacement_m: float
    """Mean distance of the generator's 8 poses to the driver's (ADE)."""
    final_displacement_m: float
    """The same of the last pose (FDE)."""
    refined_displacement_m: float | None = None
    """ADE after the refinement expert; None where it did not run."""
    refined_final_displacement_m: float | None = None
    """FDE after the refinement expert."""

    def scalars(self) -> dict[str, float]:
        """What is there, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def displacement(poses: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 8) distance [m] of poses (..., 8, 3) to true ones."""
    return np.asarray(np.linalg.norm(poses[..., :2] - truth[..., :2], axis=-1))


@torch.no_grad()
def validate(
    model: DriveFineModel,
    scenes: Demonstrations,
    instructions: Instructions,
    num_denoising_steps: int,
    refine: bool,
    batch_size: int = 64,
) -> Validation:
    """Measures a model on held-out scenes, with greedy decoding.

    Args:
      model: left in the mode it was in.
      scenes: held-out scenes.
      instructions: of both tasks.
      num_denoising_steps: of the generator.
      refine: whether the refinement expert runs too.
      batch_size: scenes at a time.
    """
    was_training = model.training
    model.eval()
    tokenizer = ActionTokenizer(model.config.action_spec)
    options = DecodingOptions(num_steps=num_denoising_steps, refine=refine)
    nll, generated, refined = 0.0, [], []
    for start in range(0, len(scenes), batch_size):
        index = np.arange(start, min(start + batch_size, len(scenes)))
        batch = scenes.batch(index).to(model.device)
        draws = generator_for(_MASK_SEED, "validation", start)
        if model.pose_head is not None:
            nll += noise_loss(model, batch, instructions.predict, draws).total.item() * len(index)
            generated.append(displacement(_denoised(model, batch, instructions.predict, draws), batch.poses))
            continue
        loss = generator_loss(model, batch, instructions.predict, draws)
        nll += loss.total.item() * len(index)
        tokens = plan_tokens(
            model,
            batch.tiles,
            batch.context_ids,
            instructions.predict,
            instructions.refine,
            options,
            batch.context_lengths,
            batch.visual,
        )
        generated.append(
            displacement(tokenizer.decode(tokens.trace.actions[:, 0].cpu().numpy()), batch.poses)
        )
        if tokens.refined_actions is not None:
            refined.append(
                displacement(tokenizer.decode(tokens.refined_actions[:, 0].cpu().numpy()), batch.poses)
            )
    model.train(was_training)
    distance = np.concatenate(generated)  # (N, 8)
    if not refined:
        return Validation(nll / len(scenes), float(distance.mean()), float(distance[:, -1].mean()))
    after = np.concatenate(refined)
    return Validation(
        nll / len(scenes),
        float(distance.mean()),
        float(distance[:, -1].mean()),
        float(after.mean()),
        float(after[:, -1].mean()),
    )


def _denoised(
    model: DriveFineModel, batch: Batch, predict_ids: Tensor, generator: torch.Generator
) -> NDArray[np.float64]:
    """(B, 8, 3) one trajectory per scene from a model with a diffusion head."""
    assert batch.status is not None
    prompt = model.prompt_states(
        batch.context_ids, predict_ids, batch.context_lengths, visual_of(model, batch)
    )
    return plan_poses(model, prompt, batch.status, generator=generator)[:, 0]
