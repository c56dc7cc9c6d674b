"""The recorded driver: an upper reference that knows the future."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.baselines.base import PlanningCase
from drivefine_agent.navsim_inputs import human_poses


class Human:
    """The recorded driver."""

    needs_image = False
    needs_scoring_scene = False

    def name(self) -> str:
        """Name for tables and reports."""
        return "human"

    def initialize(self) -> None:
        """Nothing to load."""

    def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
        """(B, 8, 3) poses."""
        return np.stack([human_poses(case.window) for case in cases])
