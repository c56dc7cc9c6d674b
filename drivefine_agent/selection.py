"""Which of several sampled plans to drive, without knowing how any of them would be scored."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.planner import PlanResult

SelectionName = Literal["first", "confidence", "consensus"]
SELECTIONS: tuple[str, ...] = get_args(SelectionName)


def select(result: PlanResult, selection: SelectionName) -> NDArray[np.int64]:
    """(B,) index of the sample to drive in each scene; ties go to the earlier sample.

    Args:
      result: plans, N samples per scene.
      selection: `first`; `confidence`, the generation expert's most probable answer (the product of its
        slots' probabilities when they were committed); `consensus`, see there.

    Raises:
      ValueError: unknown selection.
    """
    if selection == "first":
        return np.zeros(len(result.final), dtype=np.int64)
    if selection == "confidence":
        return np.argmax(result.generated_log_probs.sum(axis=-1, dtype=np.float64), axis=1)
    if selection == "consensus":
        return consensus(result.final)
    raise ValueError(f"unknown selection {selection!r}: choose one of {', '.join(SELECTIONS)}")


def consensus(poses: NDArray[np.float64]) -> NDArray[np.int64]:
    """(B,) index of the plan with the least mean displacement to the scene's other plans (the medoid).

    Args:
      poses: (B, N, 8, 3) x [m], y [m], heading [rad].
    """
    position = poses[..., :2]
    apart = np.linalg.norm(position[:, :, None] - position[:, None], axis=-1)  # (B, N, N, 8)
    return np.argmin(apart.mean(axis=-1).sum(axis=-1), axis=1)
