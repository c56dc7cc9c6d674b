"""No at-fault collision: who runs into whom, and who is to blame.

The first contact with a track decides about it: either it is the ego's fault, or the track is ignored from
then on.

Shape letters: P proposals, S = 41 simulated states, K tracks.
Source: pdm-scorer 4.2; NAVSIM v1.1, PDMScorer and get_collision_type.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.scoring.angles import relative_angle
from drivefine_agent.scoring.areas import EgoAreas
from drivefine_agent.scoring.contacts import TrackBoxes, bumper_contacts, first_contacts
from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray

STOPPED_EGO_SPEED_MPS = 0.05
BEHIND_RAD = math.radians(150.0)
AGENT_SCORE = 0.0
STATIC_OBJECT_SCORE = 0.5

_NOT_AT_FAULT, _AT_FAULT, _AT_FAULT_IF_FRONT = 0, 1, 2


def no_at_fault_collisions(
    states: FloatArray,
    points: FloatArray,
    areas: EgoAreas,
    tracks: TrackBoxes,
    ignored: NDArray[np.bool_] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Collision sub-score of each proposal; arguments as of `at_fault_contacts`.

    Returns:
      (P,) 1, 0.5 (a static object was hit) or 0 (an agent was hit), and (P,) the index of the first state
      with an at-fault collision, inf without one.
    """
    at_fault, first = at_fault_contacts(states, points, areas, tracks, ignored)
    value = np.where(np.asarray(tracks.is_agent, dtype=bool), AGENT_SCORE, STATIC_OBJECT_SCORE)
    score = np.where(at_fault, value, 1.0).min(axis=1, initial=1.0)
    first_index = np.where(at_fault, first, np.inf).min(axis=1, initial=np.inf)
    return score, first_index


def at_fault_contacts(
    states: FloatArray,
    points: FloatArray,
    areas: EgoAreas,
    tracks: TrackBoxes,
    ignored: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which tracks each proposal runs into by its own fault.

    Args:
      states: (P, S, 11) simulated states.
      points: (P, S, 5, 2) corners and centre of the ego.
      areas: flags of the same states.
      tracks: the other road users; sample t belongs to state t.
      ignored: (K,) tracks that never count.

    Returns:
      (P, K) at fault, and (P, K) the state of the first contact, -1 without one.
    """
    first = first_contacts(states, points, tracks, ignored)
    verdict = _verdicts(
        kernel_input(first, np.int64),
        kernel_input(states),
        kernel_input(areas.non_drivable | areas.multiple_lanes, np.bool_),
        kernel_input(tracks.center),
        kernel_input(tracks.is_stopped, np.bool_),
    )
    p, k = np.nonzero(verdict == _AT_FAULT_IF_FRONT)
    if len(p):
        t = first[p, k]
        hits = bumper_contacts(points[p, t, :4], np.asarray(tracks.corners)[t, k])
        verdict[p, k] = np.where(hits, _AT_FAULT, _NOT_AT_FAULT)
    return verdict == _AT_FAULT, first


@njit(cache=True, nogil=True)
def _verdicts(first, states, is_lateral_at_fault, center, is_stopped):
    """(P, K) who is to blame; left open where it depends on whether the front bumper is hit."""
    num_proposals, num_tracks = first.shape
    verdict = np.zeros((num_proposals, num_tracks), dtype=np.int8)
    for p in range(num_proposals):
        for k in range(num_tracks):
            t = first[p, k]
            if t < 0:
                continue
            state = states[p, t]
            if math.hypot(state[3], state[4]) <= STOPPED_EGO_SPEED_MPS:
                continue
            if is_stopped[k]:
                verdict[p, k] = _AT_FAULT
            elif not relative_angle(state, center[t, k]) > BEHIND_RAD:
                verdict[p, k] = _AT_FAULT if is_lateral_at_fault[p, t] else _AT_FAULT_IF_FRONT
    return verdict
