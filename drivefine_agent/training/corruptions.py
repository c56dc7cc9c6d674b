"""What the refiner is warm-started on: demonstrations spoilt in four ways.

The refiner reads 24 finished tokens and predicts all 24 anew. Before reinforcement learning it learns the
basic skill from pairs (spoilt trajectory, demonstration):

    identity    nothing spoilt: a good trajectory should stay as it is
    own sample  what the generator really decodes at a temperature in [0.7, 1.2]
    outlier     1 to 3 of the 24 numbers displaced by up to 5 m or 20 degrees
    drift       the whole path slower or faster along itself, or bent to one side

Shape letters: B trajectories; poses are (B, 8, 3), x, y [m], heading [rad] in the ego frame of now.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.constants import ANSWER_LENGTH, NUM_POSES
from drivefine_agent.geometry.indices import PoseIndex

FloatArray = NDArray[np.float64]

MAX_OUTLIERS = 3
MAX_OUTLIER_M = 5.0
MAX_OUTLIER_RAD = float(np.deg2rad(20.0))
# Ours: wide enough to cover what a generator after a short training gets wrong.
SPEED_FACTOR_RANGE = (0.6, 1.4)
MAX_BEND_RAD = float(np.deg2rad(10.0))
MAX_SIDE_DRIFT_M = 1.5


class Corruption(IntEnum):
    """Kinds of refiner input, in the order of `DEFAULT_SHARES`."""

    IDENTITY = 0
    OWN_SAMPLE = 1
    OUTLIER = 2
    DRIFT = 3


DEFAULT_SHARES = (0.2, 0.4, 0.2, 0.2)


def draw_corruptions(count: int, shares: Sequence[float], rng: np.random.Generator) -> NDArray[np.int64]:
    """(count,) kinds in random order, each present in its share; what is left after rounding down is drawn.

    Args:
      count: number of rows.
      shares: (4,) by `Corruption`, not negative, with sum 1.
      rng: random numbers.
    """
    if len(shares) != len(Corruption) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(
            f"corruption shares must be {len(Corruption)} numbers >= 0 with sum 1, got {list(shares)}"
        )
    exact = np.asarray(shares) * count
    whole = np.floor(exact + 1e-9).astype(np.int64)
    kinds = np.repeat(np.arange(len(Corruption)), whole)
    missing = count - len(kinds)
    if missing:
        rest = np.maximum(exact - whole, 0)
        kinds = np.concatenate([kinds, rng.choice(len(Corruption), size=missing, p=rest / rest.sum())])
    return rng.permutation(kinds)


def displace_numbers(poses: FloatArray, rng: np.random.Generator) -> FloatArray:
    """(B, 8, 3) with 1 to 3 of each trajectory's 24 numbers displaced, each uniformly up to the limit."""
    batch = len(poses)
    how_many = rng.integers(1, MAX_OUTLIERS + 1, size=batch)
    rank = rng.permuted(
        np.tile(np.arange(ANSWER_LENGTH), (batch, 1)), axis=1
    )  # (B, 24), ranks 0..23 in random order
    is_outlier = (rank < how_many[:, None]).reshape(batch, NUM_POSES, 3)
    limit = np.array([MAX_OUTLIER_M, MAX_OUTLIER_M, MAX_OUTLIER_RAD])
    return poses + is_outlier * rng.uniform(-1, 1, size=poses.shape) * limit


def drift(poses: FloatArray, rng: np.random.Generator) -> FloatArray:
    """(B, 8, 3) with each path, by equal chance, travelled at another speed or bent to one side."""
    batch = len(poses)
    speed_factor = rng.uniform(*SPEED_FACTOR_RANGE, size=batch)
    bend = rng.uniform(-MAX_BEND_RAD, MAX_BEND_RAD, size=batch)
    side = rng.uniform(-MAX_SIDE_DRIFT_M, MAX_SIDE_DRIFT_M, size=batch)
    is_longitudinal = rng.random(batch) < 0.5
    return np.where(
        is_longitudinal[:, None, None], change_speed(poses, speed_factor), bend_path(poses, bend, side)
    )


def change_speed(poses: FloatArray, factor: FloatArray) -> FloatArray:
    """The same path travelled `factor` times as fast: (B, 8, 3).

    Positions are interpolated along the path's chords from the origin on; beyond its end the path goes
    straight on in the direction of the last heading.
    """
    start = np.zeros_like(poses[:, :1])
    path = np.concatenate([start, poses], axis=1)  # (B, 9, 3)
    chord = np.linalg.norm(np.diff(path[..., :2], axis=1), axis=-1)  # (B, 8)
    distance = np.concatenate([np.zeros((len(poses), 1)), np.cumsum(chord, axis=1)], axis=1)  # (B, 9)
    changed = np.empty_like(poses)
    for i, wanted in enumerate(distance[:, 1:] * factor[:, None]):
        heading = np.unwrap(path[i, :, PoseIndex.HEADING])
        for column, values in ((0, path[i, :, 0]), (1, path[i, :, 1]), (2, heading)):
            changed[i, :, column] = np.interp(wanted, distance[i], values)
        beyond = np.maximum(wanted - distance[i, -1], 0)
        changed[i, :, PoseIndex.X] += beyond * np.cos(heading[-1])
        changed[i, :, PoseIndex.Y] += beyond * np.sin(heading[-1])
    return changed


def bend_path(poses: FloatArray, bend_rad: FloatArray, side_m: FloatArray) -> FloatArray:
    """The path turned about the origin by an angle growing in time, and pushed sideways with time squared.

    Args:
      poses: (B, 8, 3).
      bend_rad: (B,) turn of the last pose.
      side_m: (B,) push of the last pose, to the left of its own heading.

    Returns:
      (B, 8, 3).
    """
    share = np.arange(1, NUM_POSES + 1) / NUM_POSES  # of the horizon
    angle = bend_rad[:, None] * share
    heading = poses[..., PoseIndex.HEADING] + angle
    push = side_m[:, None] * share**2
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = poses[..., PoseIndex.X], poses[..., PoseIndex.Y]
    return np.stack(
        [cos * x - sin * y - push * np.sin(heading), sin * x + cos * y + push * np.cos(heading), heading],
        axis=-1,
    )
