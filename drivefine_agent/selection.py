"""Which of several sampled plans to drive.

All but the oracle choose without knowing how any of them would be scored. The oracle, the paper's dagger
rows, looks the true score up: a bound on what choosing can win, and no planner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.errors import DataError, SceneError
from drivefine_agent.learned_scorer import predicted_score
from drivefine_agent.planner import PlanResult

if TYPE_CHECKING:
    from drivefine_agent.scoring.types import ScoringScene

SelectionName = Literal["first", "confidence", "consensus", "scorer", "oracle"]
SELECTIONS: tuple[str, ...] = get_args(SelectionName)
ORACLE = "oracle"
SCORER = "scorer"


def select(
    result: PlanResult, selection: SelectionName, true_scores: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """(B,) index of the sample to drive in each scene; ties go to the earlier sample.

    Args:
      result: plans, N samples per scene.
      selection: `first`; `confidence`, the generation expert's most probable answer (the product of its
        slots' probabilities when they were committed); `consensus`, see there; `scorer`, the highest score
        that a learned scorer predicts; `oracle`, the highest true score.
      true_scores: (B, N) for the oracle, NaN where a plan could not be scored; at least one per scene can.

    Raises:
      ValueError: unknown selection, or the scores that it chooses by are not there.
    """
    if selection == "first":
        return np.zeros(len(result.final), dtype=np.int64)
    if selection == "confidence":
        return np.argmax(result.generated_log_probs.sum(axis=-1, dtype=np.float64), axis=1)
    if selection == "consensus":
        return consensus(result.final)
    if selection == SCORER:
        if result.predicted is None:
            raise ValueError("selection 'scorer' needs plans whose sub-scores were predicted, got none")
        return np.argmax(predicted_score(result.predicted), axis=1)
    if selection == ORACLE:
        if true_scores is None:
            raise ValueError("selection 'oracle' needs the true score of every plan, got none")
        return np.nanargmax(true_scores, axis=1)
    raise ValueError(f"unknown selection {selection!r}: choose one of {', '.join(SELECTIONS)}")


def true_scores(
    tokens: Sequence[str], scenes: Sequence[ScoringScene | None], poses: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(B, N) PDM scores of N plans (B, N, 8, 3) of each scene, NaN where scoring failed.

    Args:
      tokens: (B,) scene tokens.
      scenes: (B,) the same, prepared by NAVSIM 1.1's rules.
      poses: x [m], y [m], heading [rad], ego frame.

    Raises:
      DataError: there is no scoring scene, or it is one of NAVSIM 2's rules.
      SceneError: none of a scene's plans can be scored; says why.
    """
    from drivefine_agent.scoring.cache_layout import RULES_V1, rules_of
    from drivefine_agent.scoring.scorer import score_v1_rows

    scores = []
    for token, scene, plans in zip(tokens, scenes, poses, strict=True):
        if scene is None or rules_of(scene) != RULES_V1:
            raise DataError(
                "selection=oracle needs scoring scenes of NAVSIM 1.1's rules (benchmark=navsim_v1), got "
                f"{'none' if scene is None else rules_of(scene)} for scene {token!r}; "
                "choose another selection"
            )
        sub_scores, errors = score_v1_rows(scene, plans)
        if all(error is not None for error in errors):
            raise SceneError(
                f"a plan must be scored to be chosen, got none of scene {token!r} ({errors[0]}): see to "
                "the scene, or choose another selection"
            )
        scores.append(sub_scores.score)
    return np.stack(scores)


def consensus(poses: NDArray[np.float64]) -> NDArray[np.int64]:
    """(B,) index of the plan with the least mean displacement to the scene's other plans (the medoid).

    Args:
      poses: (B, N, 8, 3) x [m], y [m], heading [rad].
    """
    position = poses[..., :2]
    apart = np.linalg.norm(position[:, :, None] - position[:, None], axis=-1)  # (B, N, N, 8)
    return np.argmin(apart.mean(axis=-1).sum(axis=-1), axis=1)
