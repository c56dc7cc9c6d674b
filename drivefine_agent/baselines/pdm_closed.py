"""PDM-Closed, the rule-based reference planner of the score: privileged, it knows map and road users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.baselines.base import PlanningCase
from drivefine_agent.constants import NUM_POSES, POSE_INTERVAL_S, SIM_INTERVAL_S
from drivefine_agent.geometry.indices import StateIndex
from drivefine_agent.geometry.se2 import local_from_global
from drivefine_agent.scoring.types import ScoringScene

_STRIDE = round(POSE_INTERVAL_S / SIM_INTERVAL_S)  # 5 samples of 0.1 s per pose


def reference_poses_local(scene: ScoringScene) -> NDArray[np.float64]:
    """(8, 3) the reference planner's poses at 0.5 ... 4.0 s in the ego frame of now."""
    origin = scene.initial_state[[StateIndex.X, StateIndex.Y, StateIndex.HEADING]]
    return local_from_global(scene.reference_poses[_STRIDE : _STRIDE * NUM_POSES + 1 : _STRIDE], origin)


class PDMClosed:
    """The reference planner's own trajectory, read from the scoring scene."""

    needs_image = False
    needs_scoring_scene = True
    privileged = "map and road users, NAVSIM's reference"

    def name(self) -> str:
        """Name for tables and reports."""
        return "pdm_closed"

    def initialize(self) -> None:
        """Nothing to load."""

    def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
        """(B, 8, 3) poses.

        Raises:
          ValueError: a case comes without its scoring scene.
        """
        poses = []
        for case in cases:
            if case.scoring_scene is None:
                raise ValueError(
                    f"pdm_closed needs the scoring scene, got none for scene {case.window.token}"
                )
            poses.append(reference_poses_local(case.scoring_scene))
        return np.stack(poses)
