"""Time to collision within bound: would the ego, driving straight on, hit something ahead within 0.9 s?

At every state the footprint is shifted along the heading by the (unsigned) speed times 0, 0.3, 0.6 and 0.9 s
and compared with the tracks at those times. As for collisions, the first contact with a track decides about
it. The test for "ahead" mixes the ego's present position with the track's future one; that is NAVSIM's rule,
so it is ours.

Shape letters: P proposals, S = 41 simulated states, K tracks.
Source: pdm-scorer 4.7; NAVSIM v1.1, PDMScorer.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.scoring.angles import relative_angle
from drivefine_agent.scoring.areas import EgoAreas
from drivefine_agent.scoring.contacts import TrackBoxes, first_contacts
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
    """Time-to-collision sub-score of each proposal; arguments as of `time_to_collision_violations`.

    Returns:
      (P,) 1 or 0, and (P,) the index of the first state with a violation, inf without one.
    """
    violated, first = time_to_collision_violations(states, points, areas, tracks, ignored)
    score = np.where(violated.any(axis=1), 0.0, 1.0)
    states_of_contact = first // len(LOOK_AHEAD_STEPS)
    first_index = np.where(violated, states_of_contact, np.inf).min(axis=1, initial=np.inf)
    return score, first_index


def time_to_collision_violations(
    states: FloatArray,
    points: FloatArray,
    areas: EgoAreas,
    tracks: TrackBoxes,
    ignored: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which tracks each proposal would run into, driving straight on.

    Args:
      states: (P, S, 11) simulated states.
      points: (P, S, 5, 2) corners and centre of the ego.
      areas: flags of the same states.
      tracks: the other road users, on S + 9 samples at least.
      ignored: (K,) tracks that never count.

    Returns:
      (P, K) violated, and (P, K) the first contact: state x 4 + position in LOOK_AHEAD_STEPS, -1 without one.
    """
    num_states = states.shape[1]
    if len(tracks.exists) < num_states + LOOK_AHEAD_STEPS[-1]:
        raise ValueError(
            f"expected tracks on at least {num_states + LOOK_AHEAD_STEPS[-1]} samples of 0.1 s, "
            f"got {len(tracks.exists)}"
        )
    first = first_contacts(states, points, tracks, ignored, LOOK_AHEAD_STEPS, STOPPED_SPEED_MPS)
    violated = _violations(
        kernel_input(first, np.int64),
        kernel_input(states),
        kernel_input(areas.non_drivable | areas.multiple_lanes | areas.rear_axle_in_intersection, np.bool_),
        kernel_input(tracks.center),
        kernel_input(LOOK_AHEAD_STEPS, np.int64),
    )
    return violated, first


@njit(cache=True, nogil=True)
def _violations(first, states, is_beside_at_fault, center, looks_ahead):
    num_proposals, num_tracks = first.shape
    num_looks = looks_ahead.shape[0]
    violated = np.zeros((num_proposals, num_tracks), dtype=np.bool_)
    for p in range(num_proposals):
        for k in range(num_tracks):
            if first[p, k] < 0:
                continue
            t = first[p, k] // num_looks
            time = t + looks_ahead[first[p, k] % num_looks]
            angle = relative_angle(states[p, t], center[time, k])
            violated[p, k] = angle < AHEAD_RAD or (is_beside_at_fault[p, t] and not angle > BEHIND_RAD)
    return violated
