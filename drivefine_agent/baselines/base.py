"""What evaluation needs from a planner, and what it gives it.

Every planner, DriveFine and baselines alike, answers `plan(cases)` for a batch of `PlanningCase`s with one
result per case. A planner says with two flags what must be loaded for it, so that blind planners cost no
image decoding and honest ones get no privileged scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.scoring.types import ScoringScene


@dataclass(frozen=True)
class PlanningCase:
    """One scene to plan in."""

    window: SceneWindow
    front_image: NDArray[np.uint8] | None = None
    """(H, W, 3) RGB; given when the planner `needs_image`."""
    scoring_scene: ScoringScene | None = None
    """Privileged; given when the planner `needs_scoring_scene`."""


@runtime_checkable
class BatchPlanner(Protocol):
    """A planner as evaluation calls it."""

    needs_image: bool
    needs_scoring_scene: bool

    def name(self) -> str:
        """Name for tables and reports."""
        ...

    def initialize(self) -> None:
        """Loads weights; called once before the first `plan`."""
        ...

    def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
        """(B, 8, 3) poses at 0.5 ... 4.0 s in the ego frame of now: x, y [m], heading [rad]."""
        ...


def privileged_knowledge(planner: BatchPlanner) -> str:
    """What a planner knows that none can when driving, by its attribute `privileged`; empty for honest ones.

    Every output of an evaluation carries it: such results are bounds, not results of a planner.
    """
    return str(getattr(planner, "privileged", ""))


class NoPlanner:
    """Stands where nothing is planned, because the trajectories come from a file."""

    needs_image = False
    needs_scoring_scene = False

    def name(self) -> str:
        """Name for tables and reports."""
        return "none"

    def initialize(self) -> None:
        """Has nothing to load."""

    def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
        """Always raises DataError."""
        raise DataError("agent=none plans nothing: give predictions=FILE, or an agent")
