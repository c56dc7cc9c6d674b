"""The diffusion-head baseline as evaluation calls it: DriveFine's prompt, poses by a diffusion transformer.

Trained by `tools/train_sft.py model.decoder=diffusion_head`, then by `rl/train_diffusion.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from drivefine_agent.baselines.base import PlanningCase
from drivefine_agent.diffusion.continuous import DDIMOptions
from drivefine_agent.errors import DataError
from drivefine_agent.loaded_planners import (
    check_decoder,
    model_device,
    model_dtype,
    model_folder,
    shared_planner,
)
from drivefine_agent.model.tiles import tile_image
from drivefine_agent.navsim_inputs import observation_from_window
from drivefine_agent.planner import Planner, scene_generators
from drivefine_agent.pose_diffusion import plan_poses, read_prompt
from drivefine_agent.prompt import ego_status, pad_contexts
from drivefine_agent.provenance import warn_of_test_data


class DiffusionHead:
    """A trained model with a diffusion head."""

    needs_image = True
    needs_scoring_scene = False

    def __init__(
        self,
        checkpoint_path: str | Path,
        num_steps: int = 5,
        device: str = "auto",
        dtype: str = "auto",
        seed: int = 0,
    ) -> None:
        """Holds settings; weights are loaded by `initialize`.

        Args:
          checkpoint_path: folder of a model, or of a run that holds `model/`.
          num_steps: of DDIM, a divisor of 100.
          device: `auto`: the GPU if there is one.
          dtype: of the weights; `auto`: bfloat16 on a GPU, else float32.
          seed: of the noise that a trajectory starts from; it follows from seed, image and prompt.
        """
        self._folder = model_folder(Path(checkpoint_path))
        self._options = DDIMOptions(num_steps)
        self._device = model_device(device)
        self._dtype = model_dtype(dtype, self._device)
        self._seed = seed
        self._planner: Planner | None = None

    def name(self) -> str:
        """Name for tables and reports."""
        return "diffusion_head"

    def initialize(self) -> None:
        """Loads the weights, once.

        Raises:
          DataError: there is no checkpoint, or it is another decoder's.
        """
        if self._planner is None:
            warn_of_test_data(self._folder)
            planner = shared_planner(self._folder, self._device, self._dtype)
            check_decoder(planner.model.config, "diffusion_head", self._folder)
            self._planner = planner

    @torch.no_grad()
    def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
        """(B, 8, 3) poses of a batch.

        Raises:
          DataError: a case has no image.
        """
        self.initialize()
        planner = self._planner
        assert planner is not None
        observations = []
        for case in cases:
            if case.front_image is None:
                raise DataError(
                    "the diffusion head needs the front camera image, got none for scene "
                    f"{case.window.token}: fetch its sensor blobs"
                )
            observations.append(observation_from_window(case.window, case.front_image))
        config, device = planner.model.config, planner.device
        tiles = np.stack([tile_image(observation.image, config.tiles) for observation in observations])
        contexts = [planner.prompts.context(observation).ids for observation in observations]
        ids, lengths = pad_contexts(contexts, config.text_config.pad_token_id or 0)
        status = np.stack([ego_status(observation) for observation in observations])
        prompt = read_prompt(
            planner.model,
            torch.from_numpy(tiles).to(device),
            torch.from_numpy(ids).to(device),
            torch.from_numpy(planner.prompts.instruction("predict")).to(device),
            None if lengths is None else torch.from_numpy(lengths).to(device),
        )
        generators = scene_generators(self._seed, tiles, contexts)
        poses = plan_poses(
            planner.model, prompt, torch.from_numpy(status).to(device), 1, self._options, generators
        )
        # float32, as NAVSIM is given trajectories.
        return poses[:, 0].astype(np.float32).astype(np.float64)
