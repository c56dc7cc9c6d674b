"""The simulator once more, the long way: pseudo-inverses and 3 x 3 matrix products, in numpy.

Slow and close to the formulas of pdm-scorer 3.3-3.6 before their closed forms; the kernels are compared with
it.
"""

from __future__ import annotations

import numpy as np

DT = 0.1
STEP = 100_000 * 1e-6
WHEEL_BASE = 3.089


def wrap(angle):
    return np.arctan2(np.sin(angle), np.cos(angle))


def velocity_profile(poses):
    """(40,) from (41, 3): least squares over v0 and 39 accelerations, with the overwritten penalty rows."""
    displacements = np.diff(poses[:, :2], axis=0).reshape(-1)
    directions = np.stack([np.cos(poses[:-1, 2]), np.sin(poses[:-1, 2])], axis=1).reshape(-1)
    integrate = np.hstack([np.ones((40, 1)) * DT, np.tril(np.ones((40, 39)), k=-1) * DT**2])
    design = directions[:, None] * np.repeat(integrate, 2, axis=0)
    penalty = np.zeros((38, 40))  # columns: v0, a0 ... a38
    penalty[np.arange(37), np.arange(1, 38)] = -1.0
    penalty[37, 38], penalty[37, 39] = -1.0, 1.0
    solution = np.linalg.pinv(design.T @ design + 1e-4 * penalty.T @ penalty) @ design.T @ displacements
    return solution[0] + np.concatenate([[0.0], np.cumsum(DT * solution[1:])])


def curvature_profile(poses, velocity):
    """(40,) regularised least squares over the initial curvature and 39 curvature rates."""
    turns = wrap(np.diff(poses[:, 2]))
    integrate = np.hstack([np.ones((40, 1)), np.tril(np.ones((40, 39)), k=-1) * DT])
    design = (DT * velocity)[:, None] * integrate
    weights = np.diag([1e-10] + 39 * [1e-2])
    solution = np.linalg.pinv(design.T @ design + weights) @ design.T @ turns
    return solution[0] + np.concatenate([[0.0], np.cumsum(DT * solution[1:])])


def commands(state, pose, velocity, curvature, t):
    target = min(t + 10, 39)
    speed, error = state[3], state[3] - velocity[target]
    if velocity[target] <= 0.2 and speed <= 0.2:
        return -0.5 * error, 0.0
    accel = -10.0 * error / (10.0 + 1.0)
    lateral = -(state[0] - pose[0]) * np.sin(pose[2]) + (state[1] - pose[1]) * np.cos(pose[2])
    z = np.array([lateral, wrap(state[2] - pose[2]), state[7]])
    transition, control, drift = np.eye(3), np.zeros(3), np.zeros(3)
    for j in range(10):
        w = speed + DT * j * accel
        kappa = curvature[min(t + j, target)]
        a = np.array([[1.0, DT * w, 0.0], [0.0, 1.0, DT * w / WHEEL_BASE], [0.0, 0.0, 1.0]])
        transition = a @ transition
        control = a @ control + np.array([0.0, 0.0, DT])
        drift = a @ drift + np.array([0.0, -DT * w * kappa, 0.0])
    zero_input = transition @ z + drift
    zero_input[1:] = wrap(zero_input[1:])
    q = np.diag([1.0, 10.0, 0.0])
    return accel, -(control @ q @ zero_input) / (control @ q @ control + 1.0)


def step(state, accel_command, rate_command):
    x, y, heading, speed, _, accel, _, steering, _, yaw_rate, _ = state
    accel = accel + STEP / (STEP + 0.2) * (accel_command - accel)
    rate = STEP / (STEP + 0.05) * rate_command
    new = np.zeros(11)
    new[0] = x + speed * np.cos(heading) * STEP
    new[1] = y + speed * np.sin(heading) * STEP
    new[2] = (heading + speed * np.tan(steering) / WHEEL_BASE * STEP + np.pi) % (2 * np.pi) - np.pi
    new[3] = speed + accel * STEP
    new[5] = accel
    new[7] = np.clip(steering + rate * STEP, -np.pi / 3, np.pi / 3)
    new[8] = rate
    new[9] = new[3] * np.tan(new[7]) / WHEEL_BASE
    new[10] = (new[9] - yaw_rate) / STEP
    return new


def simulate_one(poses, initial_state):
    """(41, 11) from reference poses (41, 3)."""
    velocity = velocity_profile(poses)
    curvature = curvature_profile(poses, velocity)
    states = [np.asarray(initial_state, dtype=float)]
    for t in range(40):
        states.append(step(states[t], *commands(states[t], poses[t], velocity, curvature, t)))
    return np.array(states)
