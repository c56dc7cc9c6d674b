"""Time to collision within bound: would the ego, driving straight on, hit something ahead within 0.9 s?

At every state the footprint is shifted along the heading by the (unsigned) speed times 0, 0.3, 0.6 and 0.9 s
and compared with the tracks at those times. As for collisions, the first contact with a track decides about
it. The test for "ahead" mixes the ego's present position with the track's future one; that is NAVSIM's rule,
so it is ours.

Shape letters: P proposals, S = 41 simulated states, F = 4 looks ahead, K tracks.
Source: pdm-scorer 4.7; NAVSIM v1.1, PDMScorer.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.constants import SIM_INTERVAL_S
from drivefine_agent.scoring.angles import relative_angle
from drivefine_agent.scoring.areas import EgoAreas
from drivefine_agent.scoring.contacts import TrackBoxes, contact_table
from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray

LOOK_AHEAD_STEPS = (0, 3, 6, 9)
STOPPED_SPEED_MPS = 0.005  # slower states are skipped
AHEAD_RAD = math.radians(30.0)
BEHIND_RAD = math.radians(150.0)


def time_to_collision_within_bound(
    states: FloatArray,
    points: FloatArray,
    areas: EgoAreas,
    tracks: TrackBoxes,
    ignored: NDArray[np.bool_] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Time-to-collision sub-score of each proposal.

    Args:
      states: (P, S, 11) simulated states.
      points: (P, S, 5, 2) corners and centre of the ego.
      areas: flags of the same states.
      tracks: the other road users, on S + 9 samples at least.
      ignored: (K,) tracks that never count.

    Returns:
      (P,) 1 or 0, and (P,) the index of the first state with a violation, inf without one.
    """
    num_states = states.shape[1]
    steps = np.array(LOOK_AHEAD_STEPS)
    samples = (np.arange(num_states)[:, None] + steps).reshape(-1)  # (S * F,)
    if len(tracks.exists) < num_states + LOOK_AHEAD_STEPS[-1]:
        raise ValueError(
            f"expected tracks on at least {num_states + LOOK_AHEAD_STEPS[-1]} samples of 0.1 s, "
            f"got {len(tracks.exists)}"
        )
    shifted = _shifted_corners(kernel_input(states), kernel_input(points), steps)
    table = contact_table(shifted, tracks, samples)
    return _score(
        kernel_input(table, np.int8),
        kernel_input(np.zeros(table.shape[2]) if ignored is None else ignored, np.bool_),
        kernel_input(states),
        kernel_input(areas.non_drivable | areas.multiple_lanes | areas.rear_axle_in_intersection, np.bool_),
        kernel_input(tracks.center),
        kernel_input(samples, np.int64),
        len(steps),
    )


@njit(cache=True, nogil=True)
def _shifted_corners(states, points, steps):
    """(P, S * F, 4, 2) corners after the looks ahead."""
    num_proposals, num_states = states.shape[:2]
    num_steps = steps.shape[0]
    out = np.empty((num_proposals, num_states * num_steps, 4, 2))
    for p in range(num_proposals):
        for t in range(num_states):
            speed = math.hypot(states[p, t, 3], states[p, t, 4])
            vx = math.cos(states[p, t, 2]) * speed
            vy = math.sin(states[p, t, 2]) * speed
            for f in range(num_steps):
                ahead_s = steps[f] * SIM_INTERVAL_S
                for corner in range(4):
                    out[p, t * num_steps + f, corner, 0] = points[p, t, corner, 0] + vx * ahead_s
                    out[p, t * num_steps + f, corner, 1] = points[p, t, corner, 1] + vy * ahead_s
    return out


@njit(cache=True, nogil=True)
def _score(table, ignored, states, is_beside_at_fault, center, samples, num_steps):
    num_proposals, num_samples, num_tracks = table.shape
    score = np.ones(num_proposals)
    first_index = np.full(num_proposals, np.inf)
    is_decided = np.empty(num_tracks, dtype=np.bool_)
    for p in range(num_proposals):
        is_decided[:] = ignored
        for s in range(num_samples):
            t = s // num_steps
            if math.hypot(states[p, t, 3], states[p, t, 4]) < STOPPED_SPEED_MPS:
                continue
            for k in range(num_tracks):
                if table[p, s, k] == 0 or is_decided[k]:
                    continue
                is_decided[k] = True
                angle = relative_angle(states[p, t], center[samples[s], k])
                if angle < AHEAD_RAD or (is_beside_at_fault[p, t] and not angle > BEHIND_RAD):
                    score[p] = 0.0
                    first_index[p] = min(first_index[p], float(t))
    return score, first_index
