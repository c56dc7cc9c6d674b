"""A trajectory as pictures show it: name, colour, and the line between its poses."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.constants import EGO_LENGTH_M, EGO_REAR_AXLE_TO_CENTER_M, EGO_WIDTH_M
from drivefine_agent.geometry.boxes import box_corners
from drivefine_agent.geometry.se2 import global_from_local

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class LineStyle:
    """How a trajectory is drawn: by colour and by dashes, so that nobody has to tell red from green."""

    colour: str
    """As in CSS: #rrggbb."""
    dash_m: tuple[float, float] | None = None
    """Length of a dash and of the gap behind it on the road [m]; None: solid."""


# Vermillion, bluish green and blue stay apart for most colour-blind readers (after Okabe and Ito, Color
# Universal Design, 2008); the dashes for everybody.
GENERATED_STYLE = LineStyle("#d1341f", (0.7, 0.6))
REFINED_STYLE = LineStyle("#0a9462")
HUMAN_STYLE = LineStyle("#1f5fbf", (2.2, 1.4))
OTHER_COLOURS = ("#b36b00", "#8a3ffc", "#007d79", "#9f1853", "#5c5c5c", "#005d9e")
"""Of further runs, in turn."""


def path_line(poses: FloatArray) -> FloatArray:
    """(9, 2) x, y [m] from the rear axle now through all poses (8, 3), ego frame."""
    return np.vstack([np.zeros((1, 2)), poses[:, :2]])


def densify(line: FloatArray, spacing_m: float) -> FloatArray:
    """(N, 2) points along `line` (M, 2) at most `spacing_m` apart, its vertices included."""
    pieces = [line[:1]]
    for start, stop in pairwise(line):
        steps = max(1, int(np.ceil(np.linalg.norm(stop - start) / spacing_m)))
        pieces.append(start + (stop - start) * np.arange(1, steps + 1)[:, None] / steps)
    return np.vstack(pieces)


def ribbon_edges(line: FloatArray, half_width_m: float) -> tuple[FloatArray, FloatArray]:
    """Left and right edges (N, 2) of a ribbon around `line` (N, 2), N >= 2.

    Points that repeat take over the direction of the line before them, so a standing path has no spikes.
    """
    tangent = np.gradient(line, axis=0)
    length = np.linalg.norm(tangent, axis=1)
    direction = np.array([1.0, 0.0])  # a path that never moves points forward
    normals = np.empty_like(line)
    for index in range(len(line)):
        if length[index] > 1e-3:
            direction = tangent[index] / length[index]
        normals[index] = (-direction[1], direction[0])
    return line + half_width_m * normals, line - half_width_m * normals


def footprint(pose: FloatArray) -> FloatArray:
    """(4, 2) corners of the ego vehicle [m] in the order of CornerIndex, for a rear-axle pose (3,)."""
    centre = global_from_local([EGO_REAR_AXLE_TO_CENTER_M, 0.0, 0.0], pose)
    return box_corners(centre, EGO_LENGTH_M, EGO_WIDTH_M)
