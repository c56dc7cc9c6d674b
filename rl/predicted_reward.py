"""The learned scorer's part of the reward (A25): dense, and never in the place of a true score.

It reads a frozen copy of the model that the run starts from, for which it was trained, so that what it says
of an answer does not change as the policy learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drivefine_agent.learned_scorer import LearnedScorer, load_head_for, predicted_score
from drivefine_agent.training.objectives import Instructions
from rl.rollout import SceneInputs, encode_scenes

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


@dataclass(frozen=True)
class PredictedReward:
    """Scores of answers as a learned scorer predicts them."""

    scorer: LearnedScorer

    @classmethod
    def load(
        cls, folder: Path, model_folder: Path, model: DriveFineModel, instructions: Instructions
    ) -> PredictedReward:
        """The scorer in a folder.

        Args:
          folder: of tools/train_scorer.py.
          model_folder: of the model that it was trained for.
          model: that model, frozen, on its device.
          instructions: of both experts, on that device.

        Raises:
          DataError: there is no scorer, or it was trained for another model.
        """
        head = load_head_for(folder, model_folder).to(model.device)
        reads = instructions.refine if model.config.n_refine > 0 else instructions.predict
        return cls(LearnedScorer(head, model, reads))

    @torch.no_grad()
    def __call__(self, scenes: SceneInputs, actions: Tensor) -> NDArray[np.float64]:
        """(B, P) predicted PDM scores of answers (B, P, L)."""
        model = self.scorer.model
        weights = next(model.parameters())
        visual = scenes.visual.to(weights.dtype)
        context = encode_scenes(model, scenes._replace(visual=visual))
        return predicted_score(self.scorer(context, actions).double().cpu().numpy())
