"""How the vehicle follows a reference: a tracking controller and a kinematic bicycle, 40 steps of 0.1 s.

NAVSIM fits a velocity and a curvature profile to the reference by regularised least squares, then solves two
small linear-quadratic problems per step. All of it has closed forms (pdm-scorer 3.3-3.5), which agree with
the official pseudo-inverses and matrix products to about 1e-12:

* The penalty on "jerk" is in fact one on acceleration, because of an overwritten slice. The normal matrix of
  the velocity fit then is a constant band matrix, factorised once below.
* The curvature fit is one tridiagonal system per proposal.
* The controllers' matrix powers are sums over the look-ahead.

Every proposal runs through its own scalar loop, so results do not depend on what else is in the batch.

Shape letters: P proposals, S = 41 states, M = 40 displacements.

Source: NAVSIM v1.1, PDM simulation/{batch_lqr, batch_lqr_utils, batch_kinematic_bicycle, pdm_simulator}.py.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from drivefine_agent.constants import EGO_WHEEL_BASE_M, NUM_SIM_STATES, NUM_SIM_STEPS
from drivefine_agent.scoring.angles import principal_value, wrap_angle
from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray

CONTROL_INTERVAL_S = 0.1
VEHICLE_INTERVAL_S = 100_000 * 1e-6  # the vehicle's step comes from integer microseconds: 0.09999999999999999
LOOK_AHEAD_STEPS = 10
ACCEL_TIME_CONSTANT_S = 0.2
STEERING_TIME_CONSTANT_S = 0.05
MAX_STEERING_ANGLE_RAD = math.pi / 3.0
STOPPING_SPEED_MPS = 0.2
STOPPING_GAIN = 0.5
VELOCITY_GAIN = 10.0 / 11.0  # one-step LQR: q = 10, r = 1, the input acts for 10 * 0.1 s
HEADING_WEIGHT = 10.0  # Q_lat = diag(1, 10, 0), R_lat = 1
INITIAL_CURVATURE_PENALTY = 1e-10
CURVATURE_STEP_PENALTY = 1.0  # 1e-2 per curvature rate, and a rate is a difference over 0.1 s


def velocity_fit_matrix() -> FloatArray:
    """(40, 40) matrix A of the velocity fit A v = d / 0.1, with d the displacements along the headings [m].

    A = I + D'D, where D holds the first differences v[i+1] - v[i] for i = 0...36 and, last, the second
    difference v[37] - 2 v[38] + v[39].
    """
    penalty = np.zeros((NUM_SIM_STEPS - 2, NUM_SIM_STEPS))
    for i in range(NUM_SIM_STEPS - 3):
        penalty[i, i], penalty[i, i + 1] = -1.0, 1.0
    penalty[-1, -3:] = (1.0, -2.0, 1.0)
    return np.eye(NUM_SIM_STEPS) + penalty.T @ penalty


def _band_factor(matrix: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """LDL' factors of a symmetric matrix with two bands on each side: D (n,), L's bands (n,) and (n,)."""
    size = len(matrix)
    diag, near, far = np.zeros(size), np.zeros(size), np.zeros(size)
    for i in range(size):
        if i >= 2:
            far[i] = matrix[i, i - 2] / diag[i - 2]
        if i >= 1:
            near[i] = (matrix[i, i - 1] - (far[i] * diag[i - 2] * near[i - 1] if i >= 2 else 0.0)) / diag[
                i - 1
            ]
        diag[i] = matrix[i, i] - near[i] ** 2 * (diag[i - 1] if i >= 1 else 0.0)
        diag[i] -= far[i] ** 2 * (diag[i - 2] if i >= 2 else 0.0)
    return diag, near, far


_FIT_DIAG, _FIT_NEAR, _FIT_FAR = (kernel_input(band) for band in _band_factor(velocity_fit_matrix()))


def simulate(reference: FloatArray, initial_state: FloatArray) -> FloatArray:
    """States of the vehicle while it tracks each reference.

    Args:
      reference: (P, 41, 3) or more columns, of which the first three are used: global poses 0.1 s apart.
      initial_state: (11,) true ego state at t = 0, the start of every roll-out; see StateIndex.

    Returns:
      (P, 41, 11) simulated states; state 0 is `initial_state`. Not finite where the reference is not.
    """
    poses = kernel_input(np.asarray(reference)[..., :3])
    if poses.ndim != 3 or poses.shape[1] != NUM_SIM_STATES:
        raise ValueError(f"expected reference poses of shape (P, {NUM_SIM_STATES}, 3), got {poses.shape}")
    return _simulate(poses, kernel_input(initial_state), _FIT_DIAG, _FIT_NEAR, _FIT_FAR)


def fit_profiles(reference: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Velocity [m/s] and curvature [1/m] profiles, both (P, 40), of reference poses (P, 41, 3)."""
    poses = kernel_input(np.asarray(reference)[..., :3])
    velocity = np.empty((len(poses), NUM_SIM_STEPS))
    curvature = np.empty((len(poses), NUM_SIM_STEPS))
    for p in range(len(poses)):
        _fit_profiles(poses[p], _FIT_DIAG, _FIT_NEAR, _FIT_FAR, velocity[p], curvature[p])
    return velocity, curvature


@njit(cache=True, nogil=True, inline="always")
def _wrapped(angle_rad):
    """`wrap_angle`, which gives small angles back up to the last bit of rounding: they need no atan2."""
    return angle_rad if abs(angle_rad) < 3.0 else wrap_angle(angle_rad)


@njit(cache=True, nogil=True)
def _fit_profiles(poses, diag, near, far, velocity, curvature):
    size = velocity.shape[0]

    # Velocity: A v = d / 0.1 with A = LDL'.
    for i in range(size):
        along = math.cos(poses[i, 2]) * (poses[i + 1, 0] - poses[i, 0])
        along += math.sin(poses[i, 2]) * (poses[i + 1, 1] - poses[i, 1])
        value = along / CONTROL_INTERVAL_S
        if i >= 1:
            value -= near[i] * velocity[i - 1]
        if i >= 2:
            value -= far[i] * velocity[i - 2]
        velocity[i] = value
    for i in range(size - 1, -1, -1):
        value = velocity[i] / diag[i]
        if i + 1 < size:
            value -= near[i + 1] * velocity[i + 1]
        if i + 2 < size:
            value -= far[i + 2] * velocity[i + 2]
        velocity[i] = value

    # Curvature: tridiagonal, off-diagonal -1. Forward elimination, then back substitution.
    pivot = np.empty(size)
    for i in range(size):
        length = CONTROL_INTERVAL_S * velocity[i]
        turn = _wrapped(poses[i + 1, 2] - poses[i, 2])
        diagonal = length * length + (
            CURVATURE_STEP_PENALTY if i in (0, size - 1) else 2.0 * CURVATURE_STEP_PENALTY
        )
        right = length * turn
        if i == 0:
            diagonal += INITIAL_CURVATURE_PENALTY
        else:
            diagonal -= CURVATURE_STEP_PENALTY * CURVATURE_STEP_PENALTY / pivot[i - 1]
            right += CURVATURE_STEP_PENALTY * curvature[i - 1] / pivot[i - 1]
        pivot[i] = diagonal
        curvature[i] = right
    curvature[size - 1] /= pivot[size - 1]
    for i in range(size - 2, -1, -1):
        curvature[i] = (curvature[i] + CURVATURE_STEP_PENALTY * curvature[i + 1]) / pivot[i]


@njit(cache=True, nogil=True)
def tracking_commands(state, pose, velocity, curvature, t):
    """Acceleration [m/s^2] and steering rate [rad/s] that the controller asks for at step t."""
    last = velocity.shape[0] - 1
    target = min(t + LOOK_AHEAD_STEPS, last)
    speed = state[3]
    speed_error = speed - velocity[target]

    if velocity[target] <= STOPPING_SPEED_MPS and speed <= STOPPING_SPEED_MPS:
        return -STOPPING_GAIN * speed_error, 0.0
    accel = -VELOCITY_GAIN * speed_error

    sin_ref = math.sin(pose[2])
    cos_ref = math.cos(pose[2])
    lateral = -(state[0] - pose[0]) * sin_ref + (state[1] - pose[1]) * cos_ref
    heading = _wrapped(state[2] - pose[2])
    steering = state[7]

    # Roll the linearised lateral dynamics over the look-ahead: once without input, once for a unit steering
    # rate.
    lateral_per_rate = 0.0
    heading_per_rate = 0.0
    for j in range(LOOK_AHEAD_STEPS):
        path_step = CONTROL_INTERVAL_S * (speed + CONTROL_INTERVAL_S * j * accel)
        lateral += path_step * heading
        heading += path_step * (steering / EGO_WHEEL_BASE_M - curvature[min(t + j, target)])
        lateral_per_rate += path_step * heading_per_rate
        heading_per_rate += path_step * (CONTROL_INTERVAL_S * j) / EGO_WHEEL_BASE_M
    heading = _wrapped(heading)
    numerator = lateral_per_rate * lateral + HEADING_WEIGHT * heading_per_rate * heading
    denominator = lateral_per_rate**2 + HEADING_WEIGHT * heading_per_rate**2 + 1.0
    return accel, -numerator / denominator


@njit(cache=True, nogil=True)
def bicycle_step(state, accel_command, steering_rate_command, out):
    """One Euler step of the kinematic bicycle with lags on both commands; columns as in StateIndex."""
    dt = VEHICLE_INTERVAL_S
    x, y, heading, speed, accel, steering = state[0], state[1], state[2], state[3], state[5], state[7]

    accel = dt / (dt + ACCEL_TIME_CONSTANT_S) * (accel_command - accel) + accel
    wanted = dt * steering_rate_command + steering
    lagged = dt / (dt + STEERING_TIME_CONSTANT_S) * (wanted - steering) + steering
    steering_rate = (lagged - steering) / dt

    out[0] = x + speed * math.cos(heading) * dt
    out[1] = y + speed * math.sin(heading) * dt
    out[2] = principal_value(heading + speed * math.tan(steering) / EGO_WHEEL_BASE_M * dt)
    out[3] = speed + accel * dt
    out[4] = 0.0
    out[5] = accel
    out[6] = 0.0
    out[7] = min(max(steering + steering_rate * dt, -MAX_STEERING_ANGLE_RAD), MAX_STEERING_ANGLE_RAD)
    out[8] = steering_rate
    out[9] = out[3] * math.tan(out[7]) / EGO_WHEEL_BASE_M
    out[10] = (out[9] - state[9]) / dt


@njit(cache=True, nogil=True)
def _simulate(reference, initial_state, diag, near, far):
    num_proposals, num_states, _ = reference.shape
    states = np.empty((num_proposals, num_states, initial_state.shape[0]))
    velocity = np.empty(num_states - 1)
    curvature = np.empty(num_states - 1)
    for p in range(num_proposals):
        _fit_profiles(reference[p], diag, near, far, velocity, curvature)
        states[p, 0] = initial_state
        for t in range(num_states - 1):
            accel, steering_rate = tracking_commands(states[p, t], reference[p, t], velocity, curvature, t)
            bicycle_step(states[p, t], accel, steering_rate, states[p, t + 1])
    return states
