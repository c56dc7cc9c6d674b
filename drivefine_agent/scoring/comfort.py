"""Comfort: six filtered series of the simulated states must stay within their bounds.

The filters are Savitzky-Golay filters with polynomial edges, written as one weight table per filter: output
i is a dot product of its row of weights with the samples from `start[i]` on. Every filtered series is
rounded to 8 decimals, then compared strictly.

NAVSIM 1.1 passes the whole horizon as the window of most series, so one parabola stands for all 41 samples.
NAVSIM 2 has windows of 8 and 15, puts the states of the past 1.5 s in front, and takes the acceleration at
the vehicle's centre, by a formula that adds both rotation terms to the longitudinal axis. Of an even window
(8) the weights belong to the half sample *behind* the output; the four edge samples per side do not.

Shape letters: P proposals, S = 41 simulated states, H history states, n = H + S.
Source: pdm-scorer 4.9 and 4.10; NAVSIM v1.1 and v2.2, pdm_comfort_metrics.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import factorial

import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.constants import EGO_REAR_AXLE_TO_CENTER_M, NUM_SIM_STATES, SIM_INTERVAL_S
from drivefine_agent.geometry.indices import StateIndex
from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray

MIN_LON_ACCEL_MPS2 = -4.05
MAX_LON_ACCEL_MPS2 = 2.40
MAX_ABS_LAT_ACCEL_MPS2 = 4.89
MAX_ABS_JERK_MPS3 = 8.37
MAX_ABS_LON_JERK_MPS3 = 4.13
MAX_ABS_YAW_RATE_RADPS = 0.95
MAX_ABS_YAW_ACCEL_RADPS2 = 1.93

COMFORT_SERIES = (
    ("longitudinal acceleration", "m/s²"),
    ("lateral acceleration", "m/s²"),
    ("jerk", "m/s³"),
    ("longitudinal jerk", "m/s³"),
    ("yaw rate", "rad/s"),
    ("yaw acceleration", "rad/s²"),
)
"""Names and units of the six series, in the order of `comfort_margins`."""
COMFORT_BOUNDS: FloatArray = np.array(
    [
        (MIN_LON_ACCEL_MPS2, MAX_LON_ACCEL_MPS2),
        (-MAX_ABS_LAT_ACCEL_MPS2, MAX_ABS_LAT_ACCEL_MPS2),
        (-MAX_ABS_JERK_MPS3, MAX_ABS_JERK_MPS3),
        (-MAX_ABS_LON_JERK_MPS3, MAX_ABS_LON_JERK_MPS3),
        (-MAX_ABS_YAW_RATE_RADPS, MAX_ABS_YAW_RATE_RADPS),
        (-MAX_ABS_YAW_ACCEL_RADPS2, MAX_ABS_YAW_ACCEL_RADPS2),
    ]
)
"""(6, 2) lowest and highest allowed value of each series, both excluded."""

_ACCEL_WINDOW = 8
_JERK_WINDOW = 15
_YAW_WINDOW = 5


@dataclass(frozen=True)
class SeriesFilter:
    """A linear filter with one row of weights per output sample."""

    start: NDArray[np.int64]
    """(n,) first input sample of each output."""
    weights: FloatArray
    """(n, window)."""


def savgol_filter(
    num_samples: int, window: int, degree: int, derivative: int, interval_s: float
) -> SeriesFilter:
    """Savitzky-Golay filter: least-squares polynomials over a moving window, evaluated for a derivative.

    Args:
      num_samples: length n of the series.
      window: samples per polynomial; an even window evaluates half a sample behind its output in the
        interior.
      degree: degree of the polynomials.
      derivative: which derivative to take, 0 for smoothing.
      interval_s: sampling interval [s].

    Returns:
      Weights for all n outputs; the first and last `window // 2` come from the first and last polynomial.
    """
    half = window // 2
    center = (window - 1) / 2.0
    scaled = (np.arange(window) - center) / window  # keeps the normal equations well conditioned
    powers = scaled[:, None] ** np.arange(degree + 1)  # (window, degree + 1)
    fit = np.linalg.solve(powers.T @ powers, powers.T)  # samples to coefficients

    def row(offset: float) -> FloatArray:
        at = offset / window
        derivatives = np.zeros(degree + 1)
        for d in range(derivative, degree + 1):
            derivatives[d] = factorial(d) / factorial(d - derivative) * at ** (d - derivative)
        return np.asarray(derivatives @ fit / (interval_s * window) ** derivative)

    start = np.empty(num_samples, dtype=np.int64)
    weights = np.empty((num_samples, window))
    for i in range(num_samples):
        if i < half:
            start[i], offset = 0, i - center
        elif i >= num_samples - half:
            start[i], offset = num_samples - window, i - (num_samples - window) - center
        else:
            start[i], offset = i - (window - 1) // 2, 0.0
        weights[i] = row(offset)
    return SeriesFilter(start, weights)


@lru_cache(maxsize=64)
def filter_weights(num_samples: int, window: int, degree: int, derivative: int) -> FloatArray:
    """(window, n) transposed weights of a filter for a series of n samples, as the kernels take them.

    A longer window is cut to the series. The official sampling interval is the mean step of arange(n) * 0.1.
    """
    interval_s = float(np.mean(np.diff(np.arange(num_samples) * SIM_INTERVAL_S)))
    savgol = savgol_filter(num_samples, min(window, num_samples), degree, derivative, interval_s)
    return kernel_input(savgol.weights.T)


def comfort(states: FloatArray) -> FloatArray:
    """Comfort sub-score of each proposal.

    Args:
      states: (P, 41, 11) simulated states.

    Returns:
      (P,) 1 where all six series stay within their bounds, else 0.
    """
    is_comfortable = np.all(comfort_margins(states) > 0.0, axis=-1)
    return np.where(is_comfortable, 1.0, 0.0)


def comfort_margins(states: FloatArray) -> FloatArray:
    """Distance of each series from its nearer bound.

    Args:
      states: (P, 41, 11) simulated states.

    Returns:
      (P, 6) in the order and units of COMFORT_SERIES; positive iff within bounds.
    """
    return np.asarray(_margins(COMFORT_BOUNDS, *_kernel_arrays(states)))


def comfort_series(states: FloatArray) -> FloatArray:
    """(P, 6, 41) the filtered series themselves, one value per state; see `comfort_margins`."""
    return np.asarray(_series(*_kernel_arrays(states)))


def _kernel_arrays(states: FloatArray) -> tuple[FloatArray, ...]:
    """What the kernels take under NAVSIM 1.1's rules."""
    if states.shape[1:] != (NUM_SIM_STATES, len(StateIndex)):
        raise ValueError(
            f"expected states of shape (P, {NUM_SIM_STATES}, {len(StateIndex)}), got {states.shape}"
        )
    array, n = kernel_input(states), NUM_SIM_STATES
    return (
        array,
        kernel_input(array[:, :, StateIndex.AX]),
        filter_weights(n, n, 2, 0),
        filter_weights(n, _ACCEL_WINDOW, 2, 0),
        filter_weights(n, n, 2, 1),
        filter_weights(n, _YAW_WINDOW, 2, 1),
        filter_weights(n, _YAW_WINDOW, 3, 2),
    )


def history_comfort(states: FloatArray, history: FloatArray) -> FloatArray:
    """NAVSIM 2's comfort sub-score of each proposal, with the recorded past in front of it.

    Args:
      states: (P, 41, 11) simulated states.
      history: (H, 11) logged states before t = 0 at 0.1 s (`ScoringSceneV2.history_states`).

    Returns:
      (P,) 1 where all six series stay within their bounds, else 0.
    """
    is_comfortable = np.all(history_comfort_margins(states, history) > 0.0, axis=-1)
    return np.where(is_comfortable, 1.0, 0.0)


def history_comfort_margins(states: FloatArray, history: FloatArray) -> FloatArray:
    """(P, 6) like `comfort_margins`, under NAVSIM 2's rules."""
    return np.asarray(_margins(COMFORT_BOUNDS, *_kernel_arrays_v2(states, history)))


def history_comfort_series(states: FloatArray, history: FloatArray) -> FloatArray:
    """(P, 6, H + 41) like `comfort_series`, under NAVSIM 2's rules; the first H values are the past's."""
    return np.asarray(_series(*_kernel_arrays_v2(states, history)))


def _kernel_arrays_v2(states: FloatArray, history: FloatArray) -> tuple[FloatArray, ...]:
    """What the kernels take under NAVSIM 2's rules."""
    past = np.broadcast_to(history, (len(states), *history.shape))
    array = kernel_input(np.concatenate([past, states], axis=1))
    n = array.shape[1]
    turning = array[:, :, StateIndex.YAW_RATE] ** 2 + array[:, :, StateIndex.YAW_ACCEL]
    center_ax = array[:, :, StateIndex.AX] + EGO_REAR_AXLE_TO_CENTER_M * turning
    smooth = filter_weights(n, _ACCEL_WINDOW, 2, 0)
    return (
        array,
        kernel_input(center_ax),
        smooth,
        smooth,
        filter_weights(n, _JERK_WINDOW, 2, 1),
        filter_weights(n, _YAW_WINDOW, 2, 1),
        filter_weights(n, _YAW_WINDOW, 3, 2),
    )


@njit(cache=True, nogil=True)
def _apply(series, weights, out):
    """Filter a series (n,) with weights (window, n) and round the result to 8 decimals.

    The samples of an output are added up in their order; the outputs are innermost, which vectorises.
    """
    window, size = weights.shape
    half = window // 2
    inner = size - 2 * half
    out[:] = 0.0
    for j in range(window):
        first, last = series[j], series[size - window + j]
        shifted = series[half - (window - 1) // 2 + j :]
        row = weights[j]
        for i in range(half):
            out[i] += row[i] * first
        for i in range(inner):
            out[half + i] += row[half + i] * shifted[i]
        for i in range(half + inner, size):
            out[i] += row[i] * last
    for i in range(size):
        out[i] = np.rint(out[i] * 1e8) / 1e8


@njit(cache=True, nogil=True)
def _fill_series(state, lon_accel, smooth_accel, smooth_short, slope, yaw_rate, yaw_accel, buffer, out):
    """The six filtered series of one proposal's states (n, 11) into `out` (6, n); `buffer` is (2, n)."""
    series, smooth = buffer[0], buffer[1]
    num_states = state.shape[0]
    _apply(lon_accel, smooth_accel, out[0])
    _apply(state[:, 6], smooth_accel, out[1])

    for t in range(num_states):
        series[t] = np.hypot(state[t, 5], state[t, 6])
    _apply(series, smooth_short, smooth)
    _apply(smooth, slope, out[2])
    _apply(lon_accel, smooth_short, smooth)
    _apply(smooth, slope, out[3])

    turns = 0.0
    series[0] = state[0, 2]
    for t in range(1, num_states):
        turns += np.rint((state[t, 2] - state[t - 1, 2]) / (2.0 * np.pi))
        series[t] = state[t, 2] - 2.0 * np.pi * turns
    _apply(series, yaw_rate, out[4])
    _apply(series, yaw_accel, out[5])


@njit(cache=True, nogil=True)
def _margins(bounds, states, lon_accel, smooth_accel, smooth_short, slope, yaw_rate, yaw_accel):
    num_proposals, num_states, _ = states.shape
    margins = np.empty((num_proposals, 6))
    out = np.empty((6, num_states))
    buffer = np.empty((2, num_states))
    for p in range(num_proposals):
        _fill_series(
            states[p], lon_accel[p], smooth_accel, smooth_short, slope, yaw_rate, yaw_accel, buffer, out
        )
        for i in range(6):
            margins[p, i] = min(np.min(out[i]) - bounds[i, 0], bounds[i, 1] - np.max(out[i]))
    return margins


@njit(cache=True, nogil=True)
def _series(states, lon_accel, smooth_accel, smooth_short, slope, yaw_rate, yaw_accel):
    num_proposals, num_states, _ = states.shape
    series = np.empty((num_proposals, 6, num_states))
    buffer = np.empty((2, num_states))
    for p in range(num_proposals):
        _fill_series(
            states[p],
            lon_accel[p],
            smooth_accel,
            smooth_short,
            slope,
            yaw_rate,
            yaw_accel,
            buffer,
            series[p],
        )
    return series
