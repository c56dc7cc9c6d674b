"""Two-frame extended comfort: does the plan of one frame continue the plan of the frame before?

The simulated states of two predictions that start about half a second apart are compared where they overlap
in time. Acceleration, jerk, yaw rate and yaw acceleration of each are filtered on the overlap alone, and the
root mean square of each difference must not exceed its bound.

Only the magnitude of the acceleration and the heading of a simulated trajectory take part: its `Motion`.

Source: pdm-scorer 4.9 and 4.11; NAVSIM v2.2, scene_aggregator.py and pdm_comfort_metrics.py.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from drivefine_agent.constants import NUM_SIM_STATES, SIM_INTERVAL_S
from drivefine_agent.errors import DataError
from drivefine_agent.geometry.indices import StateIndex
from drivefine_agent.scoring.comfort import savgol_filter
from drivefine_agent.scoring.types import FloatArray

MAX_FRAME_INTERVAL_S = 0.55
"""Two frames must start less than this apart."""

MAX_RMS_ACCEL_MPS2 = 0.7
MAX_RMS_JERK_MPS3 = 0.5
MAX_RMS_YAW_RATE_RADPS = 0.1
MAX_RMS_YAW_ACCEL_RADPS2 = 0.1
EXTENDED_COMFORT_SERIES = (
    ("acceleration", "m/s²"),
    ("jerk", "m/s³"),
    ("yaw rate", "rad/s"),
    ("yaw acceleration", "rad/s²"),
)
"""Names and units of the four differences."""
EXTENDED_COMFORT_BOUNDS = np.array(
    [MAX_RMS_ACCEL_MPS2, MAX_RMS_JERK_MPS3, MAX_RMS_YAW_RATE_RADPS, MAX_RMS_YAW_ACCEL_RADPS2]
)
"""(4,) largest root mean square of each that is allowed."""

_ACCEL_WINDOW = 8
_JERK_WINDOW = 15
_YAW_WINDOW = 5
_DEGREE = 2
_DECIMALS = 8


def motion_of(states: FloatArray) -> FloatArray:
    """What extended comfort needs of simulated states.

    Args:
      states: (..., 41, 11) simulated states; see StateIndex.

    Returns:
      (..., 2, 41) magnitude of the acceleration at the rear axle [m/s^2], and heading [rad].
    """
    acceleration = np.hypot(states[..., StateIndex.AX], states[..., StateIndex.AY])
    return np.stack([acceleration, states[..., StateIndex.HEADING]], axis=-2)


def extended_comfort(current: FloatArray, previous: FloatArray, interval_s: float) -> float:
    """Extended comfort of a pair of frames.

    Args:
      current: (2, 41) motion of the later frame's prediction (`motion_of`).
      previous: (2, 41) motion of the earlier one's.
      interval_s: start of the later minus start of the earlier prediction [s].

    Returns:
      1 where all four differences stay within their bounds, else 0.

    Raises:
      DataError: the frames are not between 0.05 and 0.55 s apart.
      ValueError: wrong shapes or values that are not finite.
    """
    return float(
        np.all(extended_comfort_differences(current, previous, interval_s) <= EXTENDED_COMFORT_BOUNDS)
    )


def extended_comfort_differences(current: FloatArray, previous: FloatArray, interval_s: float) -> FloatArray:
    """(4,) root mean square differences; arguments and errors as in `extended_comfort`.

    They are of acceleration [m/s^2], jerk [m/s^3], yaw rate [rad/s] and yaw acceleration [rad/s^2].
    """
    for name, motion in (("current", current), ("previous", previous)):
        if motion.shape != (2, NUM_SIM_STATES) or not np.isfinite(motion).all():
            raise ValueError(f"expected finite motion (2, {NUM_SIM_STATES}), got {motion.shape} as {name}")
    shift = overlap_shift(interval_s)
    difference = _features(current[:, :-shift]) - _features(previous[:, shift:])
    return np.asarray(np.sqrt(np.mean(difference**2, axis=1)))


def overlap_shift(interval_s: float) -> int:
    """How many samples of 0.1 s the later prediction starts after the earlier one, half to even.

    Raises:
      DataError: the frames are not between 0.05 and 0.55 s apart. (Within 0.05 s NAVSIM's script fails too.)
    """
    if not 0.0 < interval_s < MAX_FRAME_INTERVAL_S or round(interval_s / SIM_INTERVAL_S) == 0:
        raise DataError(
            f"extended comfort compares frames that start between 0.05 and {MAX_FRAME_INTERVAL_S} s apart, "
            f"got {interval_s:.6f} s: check the pairs of the split"
        )
    return round(interval_s / SIM_INTERVAL_S)


def _features(motion: FloatArray) -> FloatArray:
    """(4, n) filtered acceleration, jerk, yaw rate, yaw acceleration of a motion (2, n)."""
    acceleration, heading = motion
    n = motion.shape[1]
    smooth = _filtered(acceleration, _filter_matrix(n, _ACCEL_WINDOW, 0))
    unwrapped = heading - 2.0 * np.pi * np.concatenate(
        [[0.0], np.cumsum(np.round(np.diff(heading) / (2.0 * np.pi)))]
    )
    return np.stack(
        [
            smooth,
            _filtered(smooth, _filter_matrix(n, _JERK_WINDOW, 1)),
            _filtered(unwrapped, _filter_matrix(n, _YAW_WINDOW, 1)),
            _filtered(unwrapped, _filter_matrix(n, _YAW_WINDOW, 2)),
        ]
    )


def _filtered(series: FloatArray, matrix: FloatArray) -> FloatArray:
    return np.round(matrix @ series, _DECIMALS)


@lru_cache(maxsize=64)
def _filter_matrix(num_samples: int, window: int, derivative: int) -> FloatArray:
    """(n, n) a Savitzky-Golay filter of degree 2 as a matrix."""
    interval_s = float(np.mean(np.diff(np.arange(num_samples) * SIM_INTERVAL_S)))
    savgol = savgol_filter(num_samples, min(window, num_samples), _DEGREE, derivative, interval_s)
    matrix = np.zeros((num_samples, num_samples))
    for row, (start, weights) in enumerate(zip(savgol.start, savgol.weights, strict=True)):
        matrix[row, start : start + len(weights)] = weights
    matrix.setflags(write=False)
    return matrix
