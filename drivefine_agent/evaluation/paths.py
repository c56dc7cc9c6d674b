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

# Colours that stay apart for colour-blind readers (Okabe and Ito, Color Universal Design, 2008).
HUMAN_COLOUR = "#009E73"
GENERATED_COLOUR = "#E69F00"
REFINED_COLOUR = "#0072B2"


@dataclass(frozen=True)
class DrawnPath:
    """A trajectory to draw."""

    label: str
    colour: str
    """As in CSS: #rrggbb."""
    poses: FloatArray
    """(8, 3) x, y [m], heading [rad] at 0.5 ... 4.0 s in the ego frame of now."""
    is_dashed: bool = False
    is_main: bool = False
    """The trajectory that was scored: drawn last and widest."""

    @property
    def line(self) -> FloatArray:
        """(9, 2) x, y [m] from the rear axle now, through all poses."""
        return np.vstack([np.zeros((1, 2)), self.poses[:, :2]])


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
