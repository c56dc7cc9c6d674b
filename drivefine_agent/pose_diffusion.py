"""Trajectories from the diffusion-head baseline: from noise to poses, over the same prompt as DriveFine's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drivefine_agent.answer import Randomness
from drivefine_agent.diffusion.continuous import DDIMOptions, denormalise, sample_chain

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel
    from drivefine_agent.model.pose_head import PromptStates


def plan_poses(
    model: DriveFineModel,
    prompt: PromptStates,
    status: Tensor,
    num_samples: int = 1,
    options: DDIMOptions | None = None,
    generator: Randomness = None,
) -> NDArray[np.float64]:
    """(B, N, 8, 3) x [m], y [m], heading [rad], without gradients.

    Args:
      model: with a diffusion head.
      prompt: from `model.prompt_states`.
      status: (B, 20) from `prompt.ego_status`.
      num_samples: N.
      options: None: DDIM with 5 steps.
      generator: of the noise that a trajectory starts from.
    """
    chain = sample_chain(
        lambda noisy, times: model.predict_noise(prompt, noisy, times, status),
        len(status),
        num_samples,
        options or DDIMOptions(),
        status.device,
        generator,
    )
    return poses_of(chain)


def poses_of(chain: Tensor) -> NDArray[np.float64]:
    """(B, N, 8, 3) the trajectories that chains (B, N, S + 1, 8, 3) end in."""
    return denormalise(chain[:, :, -1].double().cpu().numpy())


@torch.no_grad()
def read_prompt(
    model: DriveFineModel,
    tiles: Tensor,
    context_ids: Tensor,
    predict_ids: Tensor,
    context_lengths: Tensor | None = None,
) -> PromptStates:
    """`model.prompt_states` of image tiles (B, T, S, S, 3) uint8, without gradients."""
    return model.prompt_states(context_ids, predict_ids, context_lengths, model.encode_images(tiles))
