"""The NAVSIM seam: NAVSIM's own classes where a real NAVSIM (1.1 or 2.2) is importable, else equivalents.

Nothing else in the package imports `navsim` or `nuplan`. The distribution called `navsim` in the Python
package index is an unrelated program, so NAVSIM is recognised by a file that only it has. Versions are told
apart by features, never by a version string.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivefine_agent.constants import HORIZON_S, POSE_INTERVAL_S

_logger = logging.getLogger(__name__)


def find_navsim() -> Path | None:
    """Folder of the importable NAVSIM package, or None; imports nothing of it."""
    spec = importlib.util.find_spec("navsim")
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(location) / "agents" / "abstract_agent.py").is_file():
            return Path(location)
    return None


def _navsim_is_usable() -> bool:
    folder = find_navsim()
    if folder is None:
        return False
    if importlib.util.find_spec("nuplan") is None:
        _logger.warning(
            "NAVSIM is at %s, but nuplan-devkit is not importable: its classes cannot be used here. "
            "Install nuplan-devkit (see environment.yml) to run NAVSIM's own scripts.",
            folder,
        )
        return False
    return True


IS_NAVSIM = _navsim_is_usable()
"""Whether the names below are NAVSIM's own classes."""

if TYPE_CHECKING or not IS_NAVSIM:
    from drivefine_agent.navsim_api.equivalents import (
        AbstractAgent,
        AbstractFeatureBuilder,
        AbstractTargetBuilder,
        AgentInput,
        Annotations,
        Camera,
        Cameras,
        EgoStatus,
        Frame,
        Lidar,
        Scene,
        SceneMetadata,
        SensorConfig,
        Trajectory,
        TrajectorySampling,
    )
else:
    from navsim.agents.abstract_agent import AbstractAgent
    from navsim.common.dataclasses import (
        AgentInput,
        Annotations,
        Camera,
        Cameras,
        EgoStatus,
        Frame,
        Lidar,
        Scene,
        SceneMetadata,
        SensorConfig,
        Trajectory,
    )
    from navsim.planning.training.abstract_feature_target_builder import (
        AbstractFeatureBuilder,
        AbstractTargetBuilder,
    )
    from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling

BASE_TAKES_SAMPLING = "trajectory_sampling" in inspect.signature(AbstractAgent.__init__).parameters
"""True for NAVSIM 2.x (and the equivalents); NAVSIM 1.1's base constructor does not know the sampling."""


def default_sampling() -> TrajectorySampling:
    """The benchmark's sampling: 8 poses, 0.5 s apart."""
    return TrajectorySampling(time_horizon=HORIZON_S, interval_length=POSE_INTERVAL_S)


def base_agent_arguments(
    trajectory_sampling: TrajectorySampling, requires_scene: bool = False
) -> dict[str, Any]:
    """Keyword arguments for `AbstractAgent.__init__` that suit the NAVSIM at hand.

    NAVSIM 1.1 takes `requires_scene` first, 2.2 takes `trajectory_sampling` first: a positional call that is
    right for one silently means something else in the other.
    """
    arguments: dict[str, Any] = {"requires_scene": requires_scene}
    if BASE_TAKES_SAMPLING:
        arguments["trajectory_sampling"] = trajectory_sampling
    return arguments


__all__ = [
    "BASE_TAKES_SAMPLING",
    "IS_NAVSIM",
    "AbstractAgent",
    "AbstractFeatureBuilder",
    "AbstractTargetBuilder",
    "AgentInput",
    "Annotations",
    "Camera",
    "Cameras",
    "EgoStatus",
    "Frame",
    "Lidar",
    "Scene",
    "SceneMetadata",
    "SensorConfig",
    "Trajectory",
    "TrajectorySampling",
    "base_agent_arguments",
    "default_sampling",
    "find_navsim",
]
