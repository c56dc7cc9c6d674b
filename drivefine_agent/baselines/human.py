"""The recorded driver: an upper reference that knows the future."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.baselines.base import PlanningCase
from drivefine_agent.navsim_inputs import human_poses
from drivefine_agent.tokenizer import ActionTokenizer


class Human:
    """The recorded driver; with `quantise`, as far as action tokens can tell it."""

    needs_image = False
    needs_scoring_scene = False
    privileged = "the recorded future"

    def __init__(self, quantise: bool = False) -> None:
        """Args: quantise: encode the trajectory in the paper's action tables and decode it again."""
        self._tokenizer = ActionTokenizer() if quantise else None

    def name(self) -> str:
        """Name for tables and reports."""
        return "human" if self._tokenizer is None else "human_tokens"

    def initialize(self) -> None:
        """Nothing to load."""

    def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
        """(B, 8, 3) poses."""
        poses = np.stack([human_poses(case.window) for case in cases])
        return poses if self._tokenizer is None else self._tokenizer.decode(self._tokenizer.encode(poses))
