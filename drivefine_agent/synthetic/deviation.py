"""A drive that departs from the recorded one: where the ego would be had it driven a little differently.

From the start of the departure on, the ego runs ahead of the recorded drive or falls behind it along the same
path, and moves to one side of it. Both grow smoothly and are still growing when the second stage begins, so
heading and speed differ too. What results is again the motion of a car: the heading is that of the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely

from drivefine_agent.constants import (
    EGO_LENGTH_M,
    EGO_REAR_AXLE_TO_CENTER_M,
    EGO_WIDTH_M,
    FRAME_INTERVAL_S,
    HORIZON_S,
    NUM_POSES,
)
from drivefine_agent.synthetic.lanes import FloatArray, box_corners, smooth_step, wrap
from drivefine_agent.synthetic.world import WorldFrame

LEAST_GAP_M = 0.3
"""A departure that brings the ego closer than this to anything is drawn again."""
SLOW_MPS = 2.0
"""Below this mean speed the ego moves to the side less: a standing car cannot."""
_DIFFERENCE_S = 0.1


@dataclass(frozen=True)
class Deviation:
    """How much the ego has departed from the recorded drive 4 s after the departure began."""

    ahead_s: float = 0.0
    """It is where the recorded drive would be this much later; negative: it has fallen behind."""
    left_m: float = 0.0
    """Distance to the left of the recorded path."""
    duration_s: float = 5.0
    """Time over which both grow, if they could go on; beyond 4 s they are still growing then."""

    @property
    def is_none(self) -> bool:
        """Whether this is the recorded drive itself."""
        return self.ahead_s == 0.0 and self.left_m == 0.0


def deviated_frames(
    frames: Sequence[WorldFrame], start: int, deviation: Deviation, indices: Sequence[int]
) -> list[WorldFrame]:
    """Frames with the ego where the departed drive has it; everything else in them stays.

    Args:
      frames: the recorded drive.
      start: index of the frame in which the departure begins.
      deviation: what it grows to in the 4 s after that.
      indices: of the frames to return; none earlier than `start`.
    """
    if deviation.is_none:
        return [frames[index] for index in indices]
    drive = _Departed(frames, start, deviation)
    return [drive.frame(index) for index in indices]


def draw_deviation(
    frames: Sequence[WorldFrame], start: int, rank: int, rng: np.random.Generator
) -> Deviation:
    """The departure of the follow-up number `rank`: 0 none, 1 a small one, then larger ones.

    A departure is made smaller until the ego touches nothing on its way.
    """
    if rank == 0:
        return Deviation()
    speeds = [float(frames[start + step].ego_velocity[0]) for step in range(NUM_POSES + 1)]
    side_share = min(1.0, float(np.mean(speeds)) / SLOW_MPS)
    ahead_s, left_m = (0.05, 0.25) if rank == 1 else (0.5, 1.1)
    for attempt in range(12):
        share = rng.uniform(0.4, 1.0, 2) * np.where(rng.random(2) < 0.5, -1.0, 1.0) * 0.8**attempt
        deviation = Deviation(
            float(share[0] * ahead_s), float(share[1] * left_m * side_share), float(rng.uniform(4.2, 6.0))
        )
        if _is_free(frames, start, deviation):
            return deviation
    return Deviation()


class _Departed:
    """The departed drive as a function of time since its start."""

    def __init__(self, frames: Sequence[WorldFrame], start: int, deviation: Deviation) -> None:
        self._frames = frames
        self._start = start
        self._deviation = deviation
        poses = np.array([frame.ego_pose for frame in frames])
        self._times = FRAME_INTERVAL_S * (np.arange(len(frames)) - start)
        self._xy = poses[:, :2]
        self._headings = np.unwrap(poses[:, 2])
        self._speeds = np.array([frame.ego_velocity[0] for frame in frames])

    def frame(self, index: int) -> WorldFrame:
        time_s = float(self._times[index])
        before, now, after = (self._state(time_s + step) for step in (-_DIFFERENCE_S, 0.0, _DIFFERENCE_S))
        turn_rate = float(wrap(after[2] - before[2])) / (2.0 * _DIFFERENCE_S)
        acceleration = (after[3] - before[3]) / (2.0 * _DIFFERENCE_S)
        x, y, heading, speed = now
        return replace(
            self._frames[index],
            ego_pose=np.array([x, y, float(wrap(heading))]),
            ego_velocity=np.array([speed, 0.0]),
            ego_acceleration=np.array([acceleration, speed * turn_rate]),
        )

    def _state(self, time_s: float) -> FloatArray:
        """(4,) x, y, heading, speed."""
        share, share_rate = self._growth(time_s)
        ahead_s, left_m = self._deviation.ahead_s, self._deviation.left_m
        when = time_s + ahead_s * share
        xy, heading, speed, turn_rate = self._recorded(when)
        warp = 1.0 + ahead_s * share_rate
        forward = max(0.0, speed * warp - left_m * share * turn_rate * warp)
        sideways = left_m * share_rate
        side = np.array([-np.sin(heading), np.cos(heading)])
        x, y = xy + left_m * share * side
        angle = np.arctan2(sideways, forward) if forward > 0.3 else 0.0
        return np.array([x, y, heading + angle, np.hypot(forward, sideways) if forward > 0.3 else forward])

    def _growth(self, time_s: float) -> tuple[float, float]:
        """Share of the departure at a time, 1 at 4 s, and its rate [1/s]."""
        duration = self._deviation.duration_s
        step = 1e-3
        values = smooth_step(np.array([time_s, time_s - step, time_s + step, HORIZON_S]) / duration)
        return float(values[0] / values[3]), float((values[2] - values[1]) / (2.0 * step) / values[3])

    def _recorded(self, time_s: float) -> tuple[FloatArray, float, float, float]:
        """Position (2,), heading, speed and turn rate of the recorded drive, between its frames."""
        index = int(np.clip(np.searchsorted(self._times, time_s, "right") - 1, 0, len(self._times) - 2))
        u = (time_s - self._times[index]) / FRAME_INTERVAL_S
        headings = self._headings[index : index + 2]
        speeds = self._speeds[index : index + 2]
        tangents = FRAME_INTERVAL_S * speeds[:, None] * np.stack([np.cos(headings), np.sin(headings)], axis=1)
        first, last = self._xy[index], self._xy[index + 1]
        xy = (
            (2 * u**3 - 3 * u**2 + 1) * first
            + (u**3 - 2 * u**2 + u) * tangents[0]
            + (3 * u**2 - 2 * u**3) * last
            + (u**3 - u**2) * tangents[1]
        )
        turn_rate = float(headings[1] - headings[0]) / FRAME_INTERVAL_S
        heading = float(headings[0] + u * (headings[1] - headings[0]))
        return xy, heading, float(speeds[0] + u * (speeds[1] - speeds[0])), turn_rate


def _is_free(frames: Sequence[WorldFrame], start: int, deviation: Deviation) -> bool:
    """Whether the ego keeps clear of everything until the second stage begins."""
    indices = range(start, start + NUM_POSES + 1)
    for frame in deviated_frames(frames, start, deviation, indices):
        x, y, heading = frame.ego_pose
        near = [t for t in frame.tracks if np.hypot(t.x - x, t.y - y) < 25.0]
        if not near:
            continue
        center = np.array([x, y]) + EGO_REAR_AXLE_TO_CENTER_M * np.array([np.cos(heading), np.sin(heading)])
        boxes = box_corners(
            np.array([center[0], *(t.x for t in near)]),
            np.array([center[1], *(t.y for t in near)]),
            np.array([heading, *(t.heading for t in near)]),
            np.array([EGO_LENGTH_M, *(t.length for t in near)]),
            np.array([EGO_WIDTH_M, *(t.width for t in near)]),
        )
        polygons = shapely.polygons(boxes)
        if (shapely.distance(polygons[0], polygons[1:]) < LEAST_GAP_M).any():
            return False
    return True
