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

from drivefine_agent.geometry.indices import CornerIndex
from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray, ScoringScene

TIE_TOLERANCE_M = 1e-6
_UNDECIDED = 2
_CHUNK_SAMPLES = 16


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
    table, num_undecided = _contacts(corners, boxes, kernel_input(tracks.exists, np.bool_), times)
    if num_undecided:
        p, s, k = np.nonzero(table == _UNDECIDED)
        table[p, s, k] = shapely.intersects(
            shapely.polygons(corners[p, s]), shapely.polygons(track_corners[times[s], k])
        )
    return table


def bumper_contacts(ego_corners: FloatArray, track_corners: FloatArray) -> NDArray[np.bool_]:
    """Whether the ego's front edge touches the box of a track, for C pairs.

    Args:
      ego_corners: (C, 4, 2) [m], in the order of CornerIndex.
      track_corners: (C, 4, 2) [m].

    Returns:
      (C,).
    """
    ego, track = kernel_input(ego_corners), kernel_input(track_corners)
    hits = _bumper_contacts(ego, track)
    undecided = np.flatnonzero(hits == _UNDECIDED)
    if len(undecided):
        front = ego[undecided][:, [CornerIndex.FRONT_LEFT, CornerIndex.FRONT_RIGHT]]
        hits[undecided] = shapely.intersects(shapely.linestrings(front), shapely.polygons(track[undecided]))
    return hits != 0


@njit(cache=True, nogil=True)
def _fill_box(c, box):
    """Centre x, y, unit vector along, half length, half width, radius (< 0: degenerate) from four corners."""
    length_x, length_y = c[0, 0] - c[1, 0], c[0, 1] - c[1, 1]  # front left minus rear left
    width_x, width_y = c[0, 0] - c[3, 0], c[0, 1] - c[3, 1]  # front left minus front right
    length = np.sqrt(length_x * length_x + length_y * length_y)
    width = np.sqrt(width_x * width_x + width_y * width_y)
    radius = 0.5 * np.sqrt(length * length + width * width)
    box[0] = c[0, 0] + 0.5 * (c[2, 0] - c[0, 0])
    box[1] = c[0, 1] + 0.5 * (c[2, 1] - c[0, 1])
    box[2] = box[3] = 0.0
    box[4], box[5] = 0.5 * length, 0.5 * width
    if length > TIE_TOLERANCE_M and width > TIE_TOLERANCE_M:
        box[2], box[3] = length_x / length, length_y / length
        box[6] = radius
    else:
        box[6] = -radius - TIE_TOLERANCE_M


@njit(cache=True, nogil=True)
def _box_table(corners, exists):
    """(T, K, 7) rows of _fill_box; zeros where absent."""
    num_times, num_tracks = exists.shape
    boxes = np.zeros((num_times, num_tracks, 7))
    for t in range(num_times):
        for k in range(num_tracks):
            if exists[t, k]:
                _fill_box(corners[t, k], boxes[t, k])
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
def _decide(ego, box):
    """1 where two boxes touch, 0 where not, _UNDECIDED where the answer is left to GEOS."""
    if box[6] < 0.0 or ego[6] < 0.0:
        return _UNDECIDED
    gap = _gap(ego, box)
    if gap > TIE_TOLERANCE_M:
        return 0
    return 1 if gap < -TIE_TOLERANCE_M else _UNDECIDED


@njit(cache=True, nogil=True)
def _track_bounds(boxes, exists, samples):
    """(C, K, 4) least x and y, largest x and y of each track over each chunk of samples; empty if absent."""
    num_tracks = exists.shape[1]
    num_chunks = (samples.shape[0] + _CHUNK_SAMPLES - 1) // _CHUNK_SAMPLES
    bounds = np.empty((num_chunks, num_tracks, 4))
    bounds[:, :, :2] = np.inf
    bounds[:, :, 2:] = -np.inf
    for s in range(samples.shape[0]):
        chunk, time = s // _CHUNK_SAMPLES, samples[s]
        for k in range(num_tracks):
            if exists[time, k]:
                reach = abs(boxes[time, k, 6]) + TIE_TOLERANCE_M
                bounds[chunk, k, 0] = min(bounds[chunk, k, 0], boxes[time, k, 0] - reach)
                bounds[chunk, k, 1] = min(bounds[chunk, k, 1], boxes[time, k, 1] - reach)
                bounds[chunk, k, 2] = max(bounds[chunk, k, 2], boxes[time, k, 0] + reach)
                bounds[chunk, k, 3] = max(bounds[chunk, k, 3], boxes[time, k, 1] + reach)
    return bounds


@njit(cache=True, nogil=True)
def _contacts(ego_corners, boxes, exists, samples):
    """(P, S, K) answers of _decide, and how many of them are left to GEOS."""
    num_proposals, num_samples = ego_corners.shape[:2]
    num_tracks = exists.shape[1]
    table = np.zeros((num_proposals, num_samples, num_tracks), dtype=np.int8)
    num_undecided = 0
    bounds = _track_bounds(boxes, exists, samples)
    near = np.empty(num_tracks, dtype=np.int64)
    ego = np.empty(7)
    for p in range(num_proposals):
        for chunk in range(bounds.shape[0]):
            first = chunk * _CHUNK_SAMPLES
            last = min(first + _CHUNK_SAMPLES, num_samples)

            # Tracks that come near the ego at all within this chunk of samples.
            x_low, y_low, x_high, y_high = np.inf, np.inf, -np.inf, -np.inf
            for s in range(first, last):
                for corner in range(4):
                    x_low = min(x_low, ego_corners[p, s, corner, 0])
                    y_low = min(y_low, ego_corners[p, s, corner, 1])
                    x_high = max(x_high, ego_corners[p, s, corner, 0])
                    y_high = max(y_high, ego_corners[p, s, corner, 1])
            num_near = 0
            for k in range(num_tracks):
                if (
                    bounds[chunk, k, 0] <= x_high
                    and bounds[chunk, k, 2] >= x_low
                    and bounds[chunk, k, 1] <= y_high
                    and bounds[chunk, k, 3] >= y_low
                ):
                    near[num_near] = k
                    num_near += 1
            if num_near == 0:
                continue

            for s in range(first, last):
                _fill_box(ego_corners[p, s], ego)
                x, y, radius = ego[0], ego[1], abs(ego[6]) + TIE_TOLERANCE_M
                time = samples[s]
                for n in range(num_near):
                    k = near[n]
                    dx, dy = boxes[time, k, 0] - x, boxes[time, k, 1] - y
                    reach = abs(boxes[time, k, 6]) + radius
                    if dx * dx + dy * dy <= reach * reach and exists[time, k]:
                        table[p, s, k] = _decide(ego, boxes[time, k])
                        num_undecided += table[p, s, k] == _UNDECIDED
    return table, num_undecided


@njit(cache=True, nogil=True)
def _bumper_contacts(ego_corners, track_corners):
    num_pairs = ego_corners.shape[0]
    hits = np.empty(num_pairs, dtype=np.int8)
    ego = np.empty(7)
    track = np.empty(7)
    for c in range(num_pairs):
        _fill_box(ego_corners[c], ego)
        _fill_box(track_corners[c], track)
        ego[0] += ego[2] * ego[4]  # the front edge is a box without length
        ego[1] += ego[3] * ego[4]
        ego[4] = 0.0
        hits[c] = _decide(ego, track)
    return hits
