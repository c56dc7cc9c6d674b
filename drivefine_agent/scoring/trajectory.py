"""From poses 0.5 s apart to the reference the simulated vehicle tracks: 41 global poses 0.1 s apart.

NAVSIM goes through floating-point seconds and truncates to microseconds, so many of the stamps fall one
microsecond early (1.5e-5 m at 15 m/s); the stamps here do the same. It also stores every pose by the
*centre* of the vehicle and recovers the rear axle by subtraction, which costs about 1e-9 m at UTM
magnitudes; reproduced as well.

Shape letters: P proposals, N poses of a proposal, S = 41 samples.

Source: NAVSIM v1.1, navsim/evaluate/pdm_score.py; nuplan-devkit, InterpolatedTrajectory.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.constants import (
    EGO_REAR_AXLE_TO_CENTER_M,
    NUM_SIM_STATES,
    POSE_INTERVAL_S,
    SIM_INTERVAL_S,
)
from drivefine_agent.scoring.angles import principal_value
from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray

_MICROSECONDS_PER_SIM_STEP = 100_000


def pose_stamps_us(timestamp_us: int, num_poses: int) -> NDArray[np.int64]:
    """(N,) stamps of a prediction's poses [us]: `timestamp_us` + 0.5 s, + 1.0 s, ... or 1 us less."""
    times_s = np.arange(num_poses) * POSE_INTERVAL_S + POSE_INTERVAL_S + timestamp_us * 1e-6
    return (times_s * 1e6).astype(np.int64)


def sample_stamps_us(timestamp_us: int) -> NDArray[np.int64]:
    """(41,) stamps of the simulation grid [us]: `timestamp_us` + 0.0 s ... 4.0 s, or one microsecond less."""
    times_s = np.arange(NUM_SIM_STATES) * SIM_INTERVAL_S + timestamp_us * 1e-6
    return (times_s * 1e6).astype(np.int64)


def rear_axle_round_trip(poses: FloatArray) -> FloatArray:
    """Poses (..., 3) after the way to the vehicle's centre and back, rounding included (pdm-scorer 2.1)."""
    flat = kernel_input(poses).reshape(-1, 3)
    return _round_trip(flat).reshape(np.shape(poses))


def proposals_to_reference(initial_state: FloatArray, timestamp_us: int, poses: FloatArray) -> FloatArray:
    """Global poses on the 10 Hz grid for each proposal.

    Args:
      initial_state: (11,) or (3,) ego at t = 0, global frame; only the pose is used.
      timestamp_us: stamp of t = 0.
      poses: (P, N, 3) at 0.5 s, 1.0 s, ... in the ego frame of t = 0. Shorter than 4 s: the last pose is
        held; longer: the rest is cut.

    Returns:
      (P, 41, 3) x, y [m], heading [rad] in [-pi, pi), global frame; sample 0 is the true ego pose.
    """
    origin = kernel_input(np.asarray(initial_state)[:3])
    local = kernel_input(poses)
    knots_us = np.concatenate([[np.int64(timestamp_us)], pose_stamps_us(timestamp_us, local.shape[1])])
    knots = _lift(origin, local)
    return _resample(
        kernel_input(knots), kernel_input(knots_us, np.int64), _clipped_samples(timestamp_us, knots_us)
    )


def resample_reference(reference_poses: FloatArray, timestamp_us: int) -> FloatArray:
    """The PDM-Closed trajectory on the stamps at which proposals are sampled.

    Args:
      reference_poses: (51, 3) or (P, 51, 3) global poses exactly 0.1 s apart, the first at `timestamp_us`.
      timestamp_us: stamp of t = 0.

    Returns:
      (41, 3) or (P, 41, 3) global poses; samples lie up to one microsecond before the given ones.
    """
    array = np.asarray(reference_poses)
    batched = array[None] if array.ndim == 2 else array
    knots_us = timestamp_us + np.arange(batched.shape[1], dtype=np.int64) * _MICROSECONDS_PER_SIM_STEP
    knots = rear_axle_round_trip(batched)
    samples = _resample(
        kernel_input(knots), kernel_input(knots_us, np.int64), _clipped_samples(timestamp_us, knots_us)
    )
    return samples[0] if array.ndim == 2 else samples


def _clipped_samples(timestamp_us: int, knots_us: NDArray[np.int64]) -> NDArray[np.int64]:
    return kernel_input(np.clip(sample_stamps_us(timestamp_us), knots_us[0], knots_us[-1]), np.int64)


@njit(cache=True, nogil=True)
def _round_trip(poses):
    out = np.empty(poses.shape)
    for i in range(poses.shape[0]):
        dx = EGO_REAR_AXLE_TO_CENTER_M * math.cos(poses[i, 2])
        dy = EGO_REAR_AXLE_TO_CENTER_M * math.sin(poses[i, 2])
        out[i, 0] = (poses[i, 0] + dx) - dx
        out[i, 1] = (poses[i, 1] + dy) - dy
        out[i, 2] = poses[i, 2]
    return out


@njit(cache=True, nogil=True)
def _lift(origin, local):
    """(P, N + 1, 3) global knots: the origin, then the poses carried over, round-tripped."""
    num_proposals, num_poses, _ = local.shape
    cos_o = math.cos(origin[2])
    sin_o = math.sin(origin[2])
    knots = np.empty((num_proposals, num_poses + 1, 3))
    for p in range(num_proposals):
        knots[p, 0] = origin
        for i in range(num_poses):
            x, y = local[p, i, 0], local[p, i, 1]
            cos_l = math.cos(local[p, i, 2])
            sin_l = math.sin(local[p, i, 2])
            heading = math.atan2(sin_o * cos_l + cos_o * sin_l, cos_o * cos_l - sin_o * sin_l)
            dx = EGO_REAR_AXLE_TO_CENTER_M * math.cos(heading)
            dy = EGO_REAR_AXLE_TO_CENTER_M * math.sin(heading)
            knots[p, i + 1, 0] = ((cos_o * x - sin_o * y + origin[0]) + dx) - dx
            knots[p, i + 1, 1] = ((sin_o * x + cos_o * y + origin[1]) + dy) - dy
            knots[p, i + 1, 2] = heading
    return knots


@njit(cache=True, nogil=True)
def _resample(knots, knots_us, samples_us):
    """Linear in x, y and unwrapped heading; a sample on a knot is evaluated from the segment before it."""
    num_proposals, num_knots, _ = knots.shape
    num_samples = samples_us.shape[0]
    headings = np.empty(num_knots)
    out = np.empty((num_proposals, num_samples, 3))
    for p in range(num_proposals):
        correction = 0.0
        headings[0] = knots[p, 0, 2]
        for i in range(1, num_knots):  # numpy.unwrap
            step = knots[p, i, 2] - knots[p, i - 1, 2]
            if abs(step) >= math.pi:
                wrapped = (step + math.pi) % (2.0 * math.pi) - math.pi
                if wrapped == -math.pi and step > 0.0:
                    wrapped = math.pi
                correction += wrapped - step
            headings[i] = knots[p, i, 2] + correction
        hi = 1
        for s in range(num_samples):
            while hi < num_knots - 1 and knots_us[hi] < samples_us[s]:
                hi += 1
            lo = hi - 1
            span = float(knots_us[hi] - knots_us[lo])
            offset = float(samples_us[s] - knots_us[lo])
            x = (knots[p, hi, 0] - knots[p, lo, 0]) / span * offset + knots[p, lo, 0]
            y = (knots[p, hi, 1] - knots[p, lo, 1]) / span * offset + knots[p, lo, 1]
            heading = principal_value((headings[hi] - headings[lo]) / span * offset + headings[lo])
            dx = EGO_REAR_AXLE_TO_CENTER_M * math.cos(heading)
            dy = EGO_REAR_AXLE_TO_CENTER_M * math.sin(heading)
            out[p, s, 0] = (x + dx) - dx
            out[p, s, 1] = (y + dy) - dy
            out[p, s, 2] = heading
    return out
