"""Straight on at the present speed: NAVSIM's simplest baseline, and the agent's declared fallback."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.baselines.base import PlanningCase
from drivefine_agent.constants import NUM_POSES, POSE_INTERVAL_S
from drivefine_agent.navsim_inputs import observation_from_window


def constant_velocity_poses(velocity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Poses straight ahead at the speed of now.

    Args:
      velocity: (..., 2) ego velocity [m/s]; only its length counts, as in NAVSIM's ConstantVelocityAgent.

    Returns:
      (..., 8, 3) x, y [m], heading [rad]; float32 precision, as NAVSIM's agent returns.
    """
    speed = np.linalg.norm(np.asarray(velocity, dtype=np.float32), axis=-1)
    poses = np.zeros((*speed.shape, NUM_POSES, 3), dtype=np.float32)
    poses[..., 0] = speed[..., None] * np.float32(POSE_INTERVAL_S) * np.arange(1, NUM_POSES + 1)
    return poses.astype(np.float64)


class ConstantVelocity:
    """The constant-velocity baseline."""

    needs_image = False
    needs_scoring_scene = False

    def name(self) -> str:
        """Name for tables and reports."""
        return "constant_velocity"

    def initialize(self) -> None:
        """Nothing to load."""

    def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
        """(B, 8, 3) poses."""
        velocity = np.array([observation_from_window(case.window, None).velocity for case in cases])
        return constant_velocity_poses(velocity)
