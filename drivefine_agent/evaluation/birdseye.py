"""Bird's-eye view of a scene: what it shows, in which colours, and how much of the surroundings.

Everything is given in the ego frame of now (x forward, y left); `scene_view.py` makes it from a scene, and
the report's script draws it, the ego driving upwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

BACKGROUND = "#f3f4f1"
EGO_COLOUR = "#22272e"
AREA_COLOURS = {
    "walkway": "#e6e9df",
    "carpark": "#e9e2d0",
    "roadblock": "#dde0e5",
    "intersection": "#d3d7de",
    "connector": "#d3d7de",
    "lane": "#d3d7de",
    "route_connector": "#c3d3e6",
    "route_lane": "#c3d3e6",
    "crosswalk": "#f6f4ea",
    "stop_line": "#e7b6b6",
    "red_light": "#eec4c0",
}
"""Kinds of areas, in the order in which they are painted."""
ROAD_USER_COLOURS = {
    "vehicle": "#5f6b7a",
    "pedestrian": "#c2458f",
    "bicycle": "#7d4fc4",
    "traffic_cone": "#d55e00",
    "barrier": "#8c6d46",
    "czone_sign": "#d55e00",
    "generic_object": "#8c6d46",
}
_FARTHEST_M = ((-30.0, -45.0), (90.0, 45.0))  # lowest and highest x, y that the window follows


@dataclass(frozen=True)
class Area:
    """A polygon of the map."""

    kind: str
    """A key of `AREA_COLOURS`."""
    rings: tuple[FloatArray, ...]
    """Exterior, then holes; (N, 2) each [m]."""


@dataclass(frozen=True)
class BirdsEyeView:
    """What lies around the ego vehicle."""

    areas: tuple[Area, ...] = ()
    lane_lines: tuple[FloatArray, ...] = ()
    """(N, 2) centre lines of lanes [m]."""
    route_line: FloatArray | None = None
    """(N, 2) centre line of the route, along which progress is measured [m]."""


def visible_window(lines: Sequence[FloatArray], aspect: float) -> tuple[float, float, float, float]:
    """Smallest x, largest x, smallest y, largest y [m] of a window that shows the lines with some room.

    A wild path is followed 30 m back, 90 m ahead and 45 m to a side: the scene must stay readable.

    Args:
      lines: (N, 2) points of the trajectories; the ego at (0, 0) always counts.
      aspect: height of the picture divided by its width (x runs upwards).
    """
    points = np.vstack([np.zeros((1, 2)), *lines]).clip(*_FARTHEST_M)
    x_low, x_high = points[:, 0].min() - 12.0, points[:, 0].max() + 14.0
    y_middle = (points[:, 1].min() + points[:, 1].max()) / 2
    y_half = (points[:, 1].max() - points[:, 1].min()) / 2 + 8.0
    height = max(x_high - x_low, 2 * y_half * aspect, 45.0)  # 45 m: a standing scene still shows its street
    width = height / aspect
    x_low = min(x_low, (x_low + x_high - height) / 2 + 0.1 * height)
    return x_low, x_low + height, y_middle - width / 2, y_middle + width / 2
