"""Which moments of a drive become samples: mostly those that the past motion does not already explain.

NAVSIM leaves out scenes that a constant-velocity trajectory solves, since a benchmark of straight cruising
measures little. A synthetic drive is thinned in the same spirit, by geometry alone: where continuing the
present motion ends close to the driver's own position four seconds later, only a share of the samples is
kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drivefine_agent.constants import HORIZON_S, NUM_FUTURE_FRAMES, NUM_HISTORY_FRAMES, NUM_POSES
from drivefine_agent.synthetic.lanes import FloatArray, wrap
from drivefine_agent.synthetic.world import WorldFrame, seed_of

FADING_S = 1.0
"""Time in which the extrapolated acceleration fades away."""


def candidate_indices(num_frames: int, frame_interval: int) -> list[int]:
    """Frame indices of the current frames of NAVSIM's windows with that stride."""
    last_start = num_frames - NUM_HISTORY_FRAMES - NUM_FUTURE_FRAMES
    return [start + NUM_HISTORY_FRAMES - 1 for start in range(0, last_start + 1, frame_interval)]


def continued_positions(frame: WorldFrame, previous: WorldFrame) -> FloatArray:
    """(2, 2) where the ego would be after 4 s: straight at constant speed, and turning and accelerating on.

    Local coordinates of the world. The acceleration fades with `FADING_S`, the speed never becomes negative.
    """
    x, y, heading = (float(v) for v in frame.ego_pose)
    speed = float(frame.ego_velocity[0])
    turn_rate = float(wrap(heading - float(previous.ego_pose[2]))) / 0.5
    straight = np.array([x, y]) + speed * HORIZON_S * np.array([np.cos(heading), np.sin(heading)])
    step = 0.1
    times = np.arange(0.0, HORIZON_S - 0.5 * step, step) + 0.5 * step
    gained = float(frame.ego_acceleration[0]) * FADING_S * (1.0 - np.exp(-times / FADING_S))
    speeds = np.maximum(speed + gained, 0.0)
    headings = heading + turn_rate * times
    turned = np.array([x, y]) + step * np.array(
        [(speeds * np.cos(headings)).sum(), (speeds * np.sin(headings)).sum()]
    )
    return np.array([straight, turned])


def surprise_m(frames: Sequence[WorldFrame], index: int) -> float:
    """Distance after 4 s between the driver and the better continuation of the present motion [m]."""
    guesses = continued_positions(frames[index], frames[index - 1])
    actual = frames[index + NUM_POSES].ego_pose[:2]
    return float(np.hypot(*(guesses - actual).T).min())


def choose_samples(
    frames: Sequence[WorldFrame], seed: int, frame_interval: int, easy_error_m: float, easy_share: float
) -> list[int]:
    """Frame indices of a drive's samples.

    Args:
      frames: the drive.
      seed: of the drive; decides which of the easy samples stay.
      frame_interval: stride of the candidates.
      easy_error_m: a candidate is easy if its surprise is smaller.
      easy_share: share of the easy candidates to keep, 0 to 1.
    """
    chosen = []
    for index in candidate_indices(len(frames), frame_interval):
        is_easy = surprise_m(frames, index) < easy_error_m
        if not is_easy or seed_of(seed, "easy", index) / 2.0**64 < easy_share:
            chosen.append(index)
    return chosen
