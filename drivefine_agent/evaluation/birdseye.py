"""Bird's-eye drawing of a scene: map, road users and trajectories, from above, the ego driving upwards.

Everything is given in the ego frame of now (x forward, y left); `scene_view.py` makes it from a scene.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.path import Path as MplPath
from numpy.typing import NDArray

from drivefine_agent.evaluation.paths import DrawnPath, footprint

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
_SMALLEST_MARK_M = 0.8  # cones and pedestrians would otherwise vanish at this scale


@dataclass(frozen=True)
class Area:
    """A polygon of the map."""

    kind: str
    """A key of `AREA_COLOURS`."""
    rings: tuple[FloatArray, ...]
    """Exterior, then holes; (N, 2) each [m]."""


@dataclass(frozen=True)
class RoadUser:
    """A road user or static object, now and where it will be."""

    kind: str
    """A key of `ROAD_USER_COLOURS`."""
    corners: FloatArray
    """(4, 2) box now [m]."""
    later_corners: tuple[FloatArray, ...] = ()
    """(4, 2) boxes at the following seconds, as far as known; empty for what stands."""


@dataclass(frozen=True)
class BirdsEyeView:
    """What lies around the ego vehicle."""

    areas: tuple[Area, ...] = ()
    lane_lines: tuple[FloatArray, ...] = ()
    """(N, 2) centre lines of lanes [m]."""
    route_line: FloatArray | None = None
    """(N, 2) centre line of the route, along which progress is measured [m]."""
    road_users: tuple[RoadUser, ...] = ()


def visible_window(paths: Sequence[DrawnPath], aspect: float) -> tuple[float, float, float, float]:
    """Smallest x, largest x, smallest y, largest y [m] of a window that shows the paths with some room.

    A wild path is followed 30 m back, 90 m ahead and 45 m to a side: the scene must stay readable.

    Args:
      paths: the trajectories; the ego at (0, 0) always counts.
      aspect: height of the picture divided by its width (x runs upwards).
    """
    points = np.vstack([np.zeros((1, 2)), *(path.line for path in paths)]).clip(*_FARTHEST_M)
    x_low, x_high = points[:, 0].min() - 12.0, points[:, 0].max() + 14.0
    y_middle = (points[:, 1].min() + points[:, 1].max()) / 2
    y_half = (points[:, 1].max() - points[:, 1].min()) / 2 + 8.0
    height = max(x_high - x_low, 2 * y_half * aspect, 45.0)  # 45 m: a standing scene still shows its street
    width = height / aspect
    x_low = min(x_low, (x_low + x_high - height) / 2 + 0.1 * height)
    return x_low, x_low + height, y_middle - width / 2, y_middle + width / 2


def draw_birdseye(
    view: BirdsEyeView, paths: Sequence[DrawnPath], width_px: int = 560, height_px: int = 680
) -> bytes:
    """PNG of the scene.

    Args:
      view: surroundings, in the ego frame.
      paths: trajectories, painted in this order, main ones last.
      width_px: of the picture.
      height_px: of the picture.
    """
    dots_per_inch = 100
    figure = Figure(figsize=(width_px / dots_per_inch, height_px / dots_per_inch), dpi=dots_per_inch)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_facecolor(BACKGROUND)
    x_low, x_high, y_low, y_high = visible_window(paths, height_px / width_px)
    axes.set_xlim(y_high, y_low)  # y is left: the axis runs from left to right
    axes.set_ylim(x_low, x_high)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    pixels_per_metre = height_px / (x_high - x_low)
    _draw_map(axes, view)
    _draw_road_users(axes, view.road_users)
    axes.add_patch(Polygon(_swap(footprint(np.zeros(3))), facecolor=EGO_COLOUR, edgecolor="white", zorder=20))
    for path in sorted(paths, key=lambda path: path.is_main):
        _draw_path(axes, path)
    _draw_scale(axes, x_low, y_high, pixels_per_metre)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _swap(points: FloatArray) -> FloatArray:
    """(..., 2) from x forward, y left to the picture's horizontal and vertical axes."""
    return points[..., ::-1]


def _draw_map(axes, view: BirdsEyeView) -> None:
    for order, (kind, colour) in enumerate(AREA_COLOURS.items()):
        shapes = [_area_path(area) for area in view.areas if area.kind == kind]
        if shapes:
            edge = "#ffffff" if kind in ("lane", "route_lane") else "none"
            collection = PathCollection(shapes, facecolors=colour, edgecolors=edge, linewidths=0.7)
            collection.set_zorder(1 + order)
            axes.add_collection(collection)
    if view.lane_lines:
        lines = [_swap(line) for line in view.lane_lines]
        style = {"colors": "#aeb5bf", "linewidths": 0.7, "linestyles": (0, (6, 5))}
        axes.add_collection(LineCollection(lines, zorder=11, **style))
    if view.route_line is not None:
        route = _swap(view.route_line)
        axes.plot(
            route[:, 0], route[:, 1], color="#7f9cc0", linewidth=1.2, linestyle=(0, (1, 2.5)), zorder=12
        )


def _area_path(area: Area) -> MplPath:
    """Compound path: holes run against the exterior, so that matplotlib leaves them empty."""
    vertices, codes = [], []
    for index, ring in enumerate(area.rings):
        signed_area = np.sum(ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1])
        oriented = ring if (signed_area > 0) == (index == 0) else ring[::-1]
        vertices.append(_swap(oriented))
        codes += [MplPath.MOVETO] + [MplPath.LINETO] * (len(ring) - 2) + [MplPath.CLOSEPOLY]
    return MplPath(np.vstack(vertices), codes)


def _draw_road_users(axes, road_users: Sequence[RoadUser]) -> None:
    for kind, colour in ROAD_USER_COLOURS.items():
        own = [user for user in road_users if user.kind == kind]
        for user in own:
            count = len(user.later_corners)
            for step, corners in enumerate(user.later_corners):
                alpha = 0.5 * (1.0 - step / (count + 1.0))
                patch = Polygon(_swap(corners), facecolor="none", edgecolor=colour, alpha=alpha, zorder=14)
                axes.add_patch(patch)
        if own:
            boxes = [_swap(_enlarge(user.corners)) for user in own]
            collection = PolyCollection(boxes, facecolors=colour, edgecolors="white", linewidths=0.8)
            collection.set_zorder(15)
            axes.add_collection(collection)


def _enlarge(corners: FloatArray) -> FloatArray:
    """Box corners (4, 2), grown about the centre until the shorter side is visible."""
    shorter = min(np.linalg.norm(corners[0] - corners[1]), np.linalg.norm(corners[1] - corners[2]))
    factor = max(1.0, _SMALLEST_MARK_M / max(float(shorter), 0.05))
    middle = corners.mean(axis=0)
    return middle + factor * (corners - middle)


def _draw_path(axes, path: DrawnPath) -> None:
    order = 26 if path.is_main else 22
    line = _swap(path.line)
    dashes = (0, (4, 2)) if path.is_dashed else "solid"
    width = 3.2 if path.is_main else 2.4
    axes.plot(line[:, 0], line[:, 1], color="white", linewidth=width + 1.8, alpha=0.8, zorder=order)
    axes.plot(line[:, 0], line[:, 1], color=path.colour, linewidth=width, linestyle=dashes, zorder=order + 1)
    size = 26 if path.is_main else 16
    axes.scatter(
        line[1:, 0],
        line[1:, 1],
        s=size,
        color=path.colour,
        edgecolors="white",
        linewidths=0.8,
        zorder=order + 2,
    )
    outline = Polygon(
        _swap(footprint(path.poses[-1])), facecolor="none", edgecolor=path.colour, linewidth=1.5
    )
    outline.set_zorder(order)
    axes.add_patch(outline)


def _draw_scale(axes, x_low: float, y_high: float, pixels_per_metre: float) -> None:
    """A bar of 10 m in the lower left corner."""
    margin = 16 / pixels_per_metre
    start, height = y_high - margin, x_low + margin
    axes.plot([start, start - 10.0], [height, height], color="#444b54", linewidth=2.5, zorder=40)
    axes.text(
        start - 5.0,
        height + margin / 3,
        "10 m",
        ha="center",
        va="bottom",
        fontsize=8,
        color="#444b54",
        zorder=40,
    )
