"""What the learned scorer says of candidate plans: predicted sub-scores, and the score that follows.

The planner is frozen: a candidate is given to its refinement expert as an anchor (to the generation expert,
where the model has no refinement), and the hidden states of the 24 slots are what the head reads. All
candidates of a scene share one prompt and go through in one pass.

What a head predicts of the sub-scores is an expectation: no at-fault collision, drivable area and driving
direction by itself; progress, time to collision and comfort for those cases in which the product of the first
two is not 0, since nothing else of them enters the score. So the official formula on predictions is an
expected score, and on perfect predictions the score itself.

Source: design notes, model.md A25. Shapes: B scenes, N candidates, L = 24 slots, K sub-scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drivefine_agent.errors import DataError
from drivefine_agent.model.backbone.cache import ContextCache
from drivefine_agent.model.choices import Expert
from drivefine_agent.model.scorer_head import ScorerHead, load_scorer
from drivefine_agent.model.weight_files import weights_hash
from drivefine_agent.provenance import warn_of_test_data
from drivefine_agent.scoring.aggregate import pdm_score_v1
from drivefine_agent.tokenizer import ActionTokenizer

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


PREDICTED = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "comfort",
)
"""The sub-scores that a head predicts, in this order: NAVSIM 1.1's."""
CONDITIONAL = ("ego_progress", "time_to_collision_within_bound", "comfort")
"""Those that count only as much as the multipliers let them."""
SCORER_FOLDER = "scorer"


def predicted_score(sub_scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(...) PDM score of predicted sub-scores (..., K), by the official formula."""
    return pdm_score_v1(**{name: sub_scores[..., i] for i, name in enumerate(PREDICTED)})


@torch.no_grad()
def candidate_states(
    model: DriveFineModel, context: ContextCache, instruction_ids: Tensor, actions: Tensor
) -> Tensor:
    """(B, N, L, D) the planner's hidden states given complete answers (B, N, L), without gradient.

    Args:
      model: the planner.
      context: of the scenes.
      instruction_ids: (P1,) of the refinement expert; of the generation expert where there is no other.
      actions: action ids, none masked.
    """
    expert: Expert = "refinement" if model.config.n_refine > 0 else "generation"
    prompt = model.append_instruction(context, instruction_ids, expert)
    return model.answer_hidden(prompt, actions)


@dataclass(frozen=True)
class LearnedScorer:
    """A head and the planner that it reads; callable as a `planner.CandidateScorer`."""

    head: ScorerHead
    model: DriveFineModel
    """Never trained through this."""
    instruction_ids: Tensor
    """(P1,) of the refinement expert, or of the generation expert where there is no other."""

    @torch.no_grad()
    def __call__(self, context: ContextCache, actions: Tensor) -> Tensor:
        """(B, N, K) predicted sub-scores in [0, 1], float32, of complete answers (B, N, L)."""
        hidden = candidate_states(self.model, context, self.instruction_ids, actions)
        return torch.sigmoid(self.head(hidden, poses_of(self.model, actions)))


def poses_of(model: DriveFineModel, actions: Tensor) -> Tensor:
    """(..., 8, 3) float32 poses of complete answers (..., L), on their device."""
    poses = ActionTokenizer(model.config.action_spec).decode(actions.cpu().numpy())
    return torch.from_numpy(poses).float().to(actions.device)


def load_head_for(scorer_folder: Path, model_folder: Path) -> ScorerHead:
    """The head in a folder, for the model in another.

    Raises:
      DataError: there is none, it predicts something else, or it was trained with other weights.
    """
    head = load_scorer(scorer_folder)
    if head.config.sub_scores != PREDICTED:
        raise DataError(
            f"a learned scorer must predict {', '.join(PREDICTED)}, that in {scorer_folder} predicts "
            f"{', '.join(head.config.sub_scores)}: train it again with tools/train_scorer.py"
        )
    found = weights_hash(model_folder)
    if found != head.config.planner_sha256:
        raise DataError(
            f"the learned scorer in {scorer_folder} reads the hidden states of other weights (SHA-256 "
            f"{head.config.planner_sha256[:12]}...) than those in {model_folder} ({found[:12]}...): train "
            f"one for this model with tools/train_scorer.py checkpoint_path={model_folder}"
        )
    warn_of_test_data(scorer_folder)
    return head
