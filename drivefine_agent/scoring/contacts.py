"""When the ego first touches each track: bounds first, then circles, separating axes, and GEOS for near ties.

Touching counts as contact. The separating-axis test differs from GEOS only where the gap (or the overlap) is
of the order of rounding errors, so pairs within a micrometre are decided by GEOS itself.

Only first contacts matter (pdm-scorer 4.2), so a track is looked at no more once it has been touched.

Shape letters: P proposals, S states, F looks ahead, T samples, K tracks, W windows of time.
Source: pdm-scorer 4.2, 4.7 and 7.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.constants import SIM_INTERVAL_S
from drivefine_agent.geometry.indices import CornerIndex
from drivefine_agent.scoring.footprint import HALF_LENGTH_M, HALF_WIDTH_M
from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray, ScoringScene

TIE_TOLERANCE_M = 1e-6
_UNDECIDED = 2
_WINDOW_STEP = 4
_WINDOW_SAMPLES = 16  # enough for sixteen states, or for four with looks ahead up to 0.9 s
FITTING_LOOKS_AHEAD = ((0,), (0, 3, 6, 9))
_EGO_RADIUS_M = math.hypot(HALF_LENGTH_M, HALF_WIDTH_M)


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

    @cached_property
    def boxes(self) -> FloatArray:
        """(T, K, 7) rows of `_fill_box`, zeros where absent; for the kernels."""
        boxes = _box_table(kernel_input(self.corners), kernel_input(self.exists, np.bool_))
        return kernel_input(boxes)

    @cached_property
    def windows(self) -> FloatArray:
        """(W, K, 4) bounds of each track over windows of sixteen samples, one from every fourth sample on."""
        return kernel_input(_window_bounds(self.boxes, kernel_input(self.exists, np.bool_)))


def first_contacts(
    states: FloatArray,
    points: FloatArray,
    tracks: TrackBoxes,
    ignored: NDArray[np.bool_] | None = None,
    looks_ahead: tuple[int, ...] = (0,),
    min_speed_mps: float = 0.0,
) -> NDArray[np.int64]:
    """The first contact of each proposal with each track.

    At every state, and for every look ahead in turn, the ego's box, moved straight on by the way it makes
    meanwhile, is compared with the tracks at that time.

    Args:
      states: (P, S, 11) simulated states.
      points: (P, S, 5, 2) corners and centre of the ego in these states (or more of them).
      tracks: the other road users; sample t belongs to state t.
      ignored: (K,) tracks that never count.
      looks_ahead: F times ahead, in samples; one of FITTING_LOOKS_AHEAD.
      min_speed_mps: slower states are passed over.

    Returns:
      (P, K) state x F + position of the look ahead, -1 without a contact.

    Raises:
      ValueError: if the windows of time do not fit the looks ahead.
    """
    if looks_ahead not in FITTING_LOOKS_AHEAD:
        raise ValueError(f"looks_ahead must be one of {FITTING_LOOKS_AHEAD}, got {looks_ahead}")
    state_array, point_array = kernel_input(states), kernel_input(points)
    exists = kernel_input(tracks.exists, np.bool_)
    never = np.zeros(exists.shape[1]) if ignored is None else ignored
    first, undecided = _first_contacts(
        state_array,
        point_array,
        tracks.boxes,
        tracks.windows,
        exists,
        kernel_input(never, np.bool_),
        kernel_input(looks_ahead, np.int64),
        min_speed_mps,
    )
    if len(undecided):
        _let_geos_decide(first, undecided, states, points, tracks, looks_ahead)
    return first


def _let_geos_decide(
    first: NDArray[np.int64],
    undecided: NDArray[np.int64],
    states: FloatArray,
    points: FloatArray,
    tracks: TrackBoxes,
    looks_ahead: tuple[int, ...],
) -> None:
    """Moves first contacts (P, K) forward to undecided pairs (U, 3: proposal, position, track) that touch."""
    p, position, k = undecided.T
    t, look = position // len(looks_ahead), np.array(looks_ahead)[position % len(looks_ahead)]
    speed, heading = np.hypot(states[p, t, 3], states[p, t, 4]), states[p, t, 2]
    velocity = np.stack([np.cos(heading) * speed, np.sin(heading) * speed], axis=-1)  # (U, 2)
    ego = shapely.polygons(points[p, t, :4] + (velocity * (look * SIM_INTERVAL_S)[:, None])[:, None])
    touches = shapely.intersects(ego, shapely.polygons(np.asarray(tracks.corners)[t + look, k]))
    for row, at, track in undecided[touches]:
        if first[row, track] < 0 or at < first[row, track]:
            first[row, track] = at


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
def _window_bounds(boxes, exists):
    """(W, K, 4) least x and y, largest x and y of each track from sample 4 W on; empty where absent."""
    num_times, num_tracks = exists.shape
    num_windows = (num_times + _WINDOW_STEP - 1) // _WINDOW_STEP
    bounds = np.empty((num_windows, num_tracks, 4))
    for w in range(num_windows):
        for k in range(num_tracks):
            x_low, y_low, x_high, y_high = np.inf, np.inf, -np.inf, -np.inf
            for t in range(w * _WINDOW_STEP, min(w * _WINDOW_STEP + _WINDOW_SAMPLES, num_times)):
                if exists[t, k]:
                    reach = abs(boxes[t, k, 6]) + TIE_TOLERANCE_M
                    x_low, y_low = min(x_low, boxes[t, k, 0] - reach), min(y_low, boxes[t, k, 1] - reach)
                    x_high, y_high = max(x_high, boxes[t, k, 0] + reach), max(y_high, boxes[t, k, 1] + reach)
            bounds[w, k, 0], bounds[w, k, 1], bounds[w, k, 2], bounds[w, k, 3] = x_low, y_low, x_high, y_high
    return bounds


@njit(cache=True, nogil=True)
def _first_contacts(states, points, boxes, windows, exists, ignored, looks_ahead, min_speed_mps):
    """(P, K) first contacts for certain, and (U, 3) pairs before them that are left to GEOS."""
    num_proposals, num_states = states.shape[:2]
    num_tracks, num_looks = exists.shape[1], looks_ahead.shape[0]
    first = np.full((num_proposals, num_tracks), -1, dtype=np.int64)
    undecided = np.empty((16, 3), dtype=np.int64)
    num_undecided = 0
    states_at_once = max(1, _WINDOW_SAMPLES // num_looks)
    near = np.empty(num_tracks, dtype=np.int64)
    ego = np.empty((states_at_once, 5))  # centre, unit vector along, speed
    box = np.empty(7)
    box[4], box[5], box[6] = HALF_LENGTH_M, HALF_WIDTH_M, _EGO_RADIUS_M
    for p in range(num_proposals):
        for first_state in range(0, num_states, states_at_once):
            count = min(states_at_once, num_states - first_state)
            x_low, y_low, x_high, y_high = _fill_ego(states, points, p, first_state, count, looks_ahead, ego)
            num_near = _tracks_near(
                windows, first_state // _WINDOW_STEP, ignored, first, p, x_low, y_low, x_high, y_high, near
            )
            if num_near == 0:
                continue
            for s in range(count):
                if ego[s, 4] < min_speed_mps:
                    continue
                box[2], box[3] = ego[s, 2], ego[s, 3]
                for f in range(num_looks):
                    way = ego[s, 4] * (looks_ahead[f] * SIM_INTERVAL_S)
                    box[0], box[1] = ego[s, 0] + ego[s, 2] * way, ego[s, 1] + ego[s, 3] * way
                    time = first_state + s + looks_ahead[f]
                    position = (first_state + s) * num_looks + f
                    for n in range(num_near):
                        k = near[n]
                        dx, dy = boxes[time, k, 0] - box[0], boxes[time, k, 1] - box[1]
                        reach = abs(boxes[time, k, 6]) + _EGO_RADIUS_M + TIE_TOLERANCE_M
                        if dx * dx + dy * dy > reach * reach or not exists[time, k] or first[p, k] >= 0:
                            continue
                        answer = _decide(box, boxes[time, k])
                        if answer == 1:
                            first[p, k] = position
                        elif answer == _UNDECIDED:
                            if num_undecided == undecided.shape[0]:
                                undecided = np.concatenate((undecided, undecided))
                            undecided[num_undecided, 0] = p
                            undecided[num_undecided, 1] = position
                            undecided[num_undecided, 2] = k
                            num_undecided += 1
    return first, undecided[:num_undecided]


@njit(cache=True, nogil=True)
def _fill_ego(states, points, p, first_state, count, looks_ahead, ego):
    """Centre, unit vector and speed of some states in rows of `ego`, and bounds of their boxes.

    Least x and y, largest x and y over all looks ahead.
    """
    x_low, y_low, x_high, y_high = np.inf, np.inf, -np.inf, -np.inf
    for s in range(count):
        t = first_state + s
        x, y = points[p, t, 4, 0], points[p, t, 4, 1]
        along_x = (points[p, t, 0, 0] - points[p, t, 1, 0]) / (2.0 * HALF_LENGTH_M)
        along_y = (points[p, t, 0, 1] - points[p, t, 1, 1]) / (2.0 * HALF_LENGTH_M)
        speed = math.hypot(states[p, t, 3], states[p, t, 4])
        way = speed * (looks_ahead[-1] * SIM_INTERVAL_S)
        end_x, end_y = x + along_x * way, y + along_y * way
        ego[s, 0], ego[s, 1], ego[s, 2], ego[s, 3], ego[s, 4] = x, y, along_x, along_y, speed
        x_low, y_low = min(x_low, x, end_x), min(y_low, y, end_y)
        x_high, y_high = max(x_high, x, end_x), max(y_high, y, end_y)
    return x_low - _EGO_RADIUS_M, y_low - _EGO_RADIUS_M, x_high + _EGO_RADIUS_M, y_high + _EGO_RADIUS_M


@njit(cache=True, nogil=True)
def _tracks_near(windows, w, ignored, first, p, x_low, y_low, x_high, y_high, near):
    """How many tracks come into a box within a window of time; their indices are put into `near`.

    Tracks that do not count, or have been touched already, are left out.
    """
    count = 0
    for k in range(windows.shape[1]):
        if (
            windows[w, k, 0] <= x_high
            and windows[w, k, 2] >= x_low
            and windows[w, k, 1] <= y_high
            and windows[w, k, 3] >= y_low
            and not ignored[k]
            and first[p, k] < 0
        ):
            near[count] = k
            count += 1
    return count


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
