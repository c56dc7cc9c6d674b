"""Which ego boxes touch which tracks: circles first, then separating axes, then GEOS for near ties.

Touching counts as contact. The separating-axis test differs from GEOS only where the gap (or the overlap) is
of the order of rounding errors, so pairs within a micrometre are decided by GEOS itself.

Shape letters: P proposals, S samples, K tracks.
Source: pdm-scorer 4.2, 4.7 and 7.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray, ScoringScene

TIE_TOLERANCE_M = 1e-6
_UNDECIDED = 2


@dataclass(frozen=True)
class TrackBoxes:
    """Other road users on the 10 Hz grid, in the layout of ScoringScene; T is at least 50 (0 to 4.9 s)."""

    corners: FloatArray
    """(T, K, 4, 2) box corners [m], global; any value where absent."""
    center: FloatArray
    """(T, K, 2) centroid of the box [m], global."""
    exists: NDArray[np.bool_]
    """(T, K)."""
    is_agent: NDArray[np.bool_]
    """(K,) vehicle, pedestrian or bicycle."""
    is_stopped: NDArray[np.bool_]
    """(K,) not an agent, or at most 0.05 m/s when first seen."""

    @classmethod
    def from_scene(cls, scene: ScoringScene) -> TrackBoxes:
        """The tracks of a scene (views, no copies)."""
        return cls(
            corners=scene.track_corners,
            center=scene.track_center,
            exists=scene.track_exists,
            is_agent=scene.track_is_agent,
            is_stopped=scene.track_is_stopped,
        )


def contact_table(
    ego_corners: FloatArray, tracks: TrackBoxes, samples: NDArray[np.int64]
) -> NDArray[np.int8]:
    """Contacts of ego boxes with the tracks.

    Args:
      ego_corners: (P, S, 4, 2) [m], global, in the order of CornerIndex.
      tracks: the other road users.
      samples: (S,) index into the tracks' time axis for each ego box.

    Returns:
      (P, S, K) 1 where the box touches the track, else 0.
    """
    corners = kernel_input(ego_corners)
    track_corners = kernel_input(tracks.corners)
    boxes = _box_table(track_corners, kernel_input(tracks.exists, np.bool_))
    times = kernel_input(samples, np.int64)
    table = _contacts(corners, boxes, kernel_input(tracks.exists, np.bool_), times)
    undecided = np.argwhere(table == _UNDECIDED)
    if len(undecided):
        p, s, k = undecided.T
        table[p, s, k] = shapely.intersects(
            shapely.polygons(corners[p, s]), shapely.polygons(track_corners[times[s], k])
        )
    return table


@njit(cache=True, nogil=True)
def _box_table(corners, exists):
    """(T, K, 7) centre x, y, unit vector along, half length, half width, radius (< 0: degenerate)."""
    num_times, num_tracks = exists.shape
    boxes = np.zeros((num_times, num_tracks, 7))
    for t in range(num_times):
        for k in range(num_tracks):
            if not exists[t, k]:
                continue
            c = corners[t, k]
            length_x, length_y = c[0, 0] - c[1, 0], c[0, 1] - c[1, 1]  # front left minus rear left
            width_x, width_y = c[0, 0] - c[3, 0], c[0, 1] - c[3, 1]  # front left minus front right
            length = np.sqrt(length_x * length_x + length_y * length_y)
            width = np.sqrt(width_x * width_x + width_y * width_y)
            boxes[t, k, 0] = c[0, 0] + 0.5 * (c[2, 0] - c[0, 0])
            boxes[t, k, 1] = c[0, 1] + 0.5 * (c[2, 1] - c[0, 1])
            radius = 0.5 * np.sqrt(length * length + width * width)
            if length > TIE_TOLERANCE_M and width > TIE_TOLERANCE_M:
                boxes[t, k, 2] = length_x / length
                boxes[t, k, 3] = length_y / length
                boxes[t, k, 6] = radius
            else:
                boxes[t, k, 6] = -radius - TIE_TOLERANCE_M
            boxes[t, k, 4] = 0.5 * length
            boxes[t, k, 5] = 0.5 * width
    return boxes


@njit(cache=True, nogil=True)
def _gap(ego, box):
    """Largest separation of two boxes over their four axes [m]; negative where they overlap."""
    dx, dy = box[0] - ego[0], box[1] - ego[1]
    cos_rel = abs(ego[2] * box[2] + ego[3] * box[3])
    sin_rel = abs(ego[2] * box[3] - ego[3] * box[2])
    gap = abs(dx * ego[2] + dy * ego[3]) - ego[4] - box[4] * cos_rel - box[5] * sin_rel
    gap = max(gap, abs(dy * ego[2] - dx * ego[3]) - ego[5] - box[4] * sin_rel - box[5] * cos_rel)
    gap = max(gap, abs(dx * box[2] + dy * box[3]) - box[4] - ego[4] * cos_rel - ego[5] * sin_rel)
    return max(gap, abs(dy * box[2] - dx * box[3]) - box[5] - ego[4] * sin_rel - ego[5] * cos_rel)


@njit(cache=True, nogil=True)
def _contacts(ego_corners, boxes, exists, samples):
    num_proposals, num_samples = ego_corners.shape[:2]
    num_tracks = exists.shape[1]
    table = np.zeros((num_proposals, num_samples, num_tracks), dtype=np.int8)
    ego = np.empty(6)
    for p in range(num_proposals):
        for s in range(num_samples):
            c = ego_corners[p, s]
            length_x, length_y = c[0, 0] - c[1, 0], c[0, 1] - c[1, 1]
            length = np.sqrt(length_x * length_x + length_y * length_y)
            width = np.sqrt((c[0, 0] - c[3, 0]) ** 2 + (c[0, 1] - c[3, 1]) ** 2)
            ego[0] = c[0, 0] + 0.5 * (c[2, 0] - c[0, 0])
            ego[1] = c[0, 1] + 0.5 * (c[2, 1] - c[0, 1])
            ego[2], ego[3] = length_x / length, length_y / length
            ego[4], ego[5] = 0.5 * length, 0.5 * width
            ego_radius = 0.5 * np.sqrt(length * length + width * width) + TIE_TOLERANCE_M
            time = samples[s]
            for k in range(num_tracks):
                if not exists[time, k]:
                    continue
                dx, dy = boxes[time, k, 0] - ego[0], boxes[time, k, 1] - ego[1]
                reach = ego_radius + abs(boxes[time, k, 6])
                if dx * dx + dy * dy > reach * reach:
                    continue
                if boxes[time, k, 6] < 0.0:
                    table[p, s, k] = _UNDECIDED
                    continue
                gap = _gap(ego, boxes[time, k])
                if gap < -TIE_TOLERANCE_M:
                    table[p, s, k] = 1
                elif gap <= TIE_TOLERANCE_M:
                    table[p, s, k] = _UNDECIDED
    return table


@njit(cache=True, nogil=True)
def relative_angle(ego_pose, point):
    """Angle between the ego's heading and the way from its rear axle to a point [rad].

    NaN where rounding lifts the dot product above 1 (a point exactly along the heading) and where both
    coincide: such a point is neither ahead nor behind. NAVSIM's arccos is unguarded, and so is this
    (pdm-scorer 5.5).
    """
    dx, dy = point[0] - ego_pose[0], point[1] - ego_pose[1]
    norm = np.sqrt(dx * dx + dy * dy)
    if norm == 0.0:
        return np.nan
    dot = np.cos(ego_pose[2]) * (dx / norm) + np.sin(ego_pose[2]) * (dy / norm)
    if abs(dot) > 1.0:
        return np.nan
    return np.arccos(dot)
