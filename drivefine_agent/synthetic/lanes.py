"""Lane geometry: smooth plane curves as polylines, their offsets, and the curves that connect them.

Everything here is plane geometry in metres and radians; nothing knows what a road is. Curves have vertices
about one metre apart, as nuPlan's baseline paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

STEP_M = 1.0
"""Distance of neighbouring vertices along a generated curve."""


@dataclass(frozen=True)
class Path:
    """A polyline with arc length and heading at every vertex."""

    xy: FloatArray
    """(N, 2) [m], N >= 2, no repeated vertices."""

    @cached_property
    def s(self) -> FloatArray:
        """(N,) arc length [m], starting at 0."""
        steps = np.hypot(*np.diff(self.xy, axis=0).T)
        return np.concatenate([[0.0], np.cumsum(steps)])

    @cached_property
    def heading(self) -> FloatArray:
        """(N,) tangent direction [rad], unwrapped along the path."""
        return np.unwrap(np.arctan2(self.tangent[:, 1], self.tangent[:, 0]))

    @cached_property
    def tangent(self) -> FloatArray:
        """(N, 2) unit tangents: chord of the two neighbours inside, second order one-sided at the ends."""
        edges = np.diff(self.xy, axis=0)
        edges = edges / np.hypot(edges[:, 0], edges[:, 1])[:, None]
        middle = edges[:-1] + edges[1:]
        if len(middle) == 0:
            return np.repeat(edges, 2, axis=0)
        first, last = 1.5 * edges[0] - 0.5 * edges[1], 1.5 * edges[-1] - 0.5 * edges[-2]
        tangents = np.vstack([first, middle, last])
        return tangents / np.hypot(tangents[:, 0], tangents[:, 1])[:, None]

    @cached_property
    def normal(self) -> FloatArray:
        """(N, 2) unit normals, pointing left."""
        return np.stack([-self.tangent[:, 1], self.tangent[:, 0]], axis=1)

    @cached_property
    def curvature(self) -> FloatArray:
        """(N,) change of heading per metre, positive to the left."""
        return np.gradient(self.heading, self.s)

    @property
    def length(self) -> float:
        """Arc length [m]."""
        return float(self.s[-1])

    def at(self, s: float) -> tuple[float, float, float]:
        """Pose (x, y, heading) at arc length `s`, clipped to the path."""
        return (
            float(np.interp(s, self.s, self.xy[:, 0])),
            float(np.interp(s, self.s, self.xy[:, 1])),
            float(np.interp(s, self.s, self.heading)),
        )

    def points(self, s: FloatArray) -> FloatArray:
        """(M, 2) positions at arc lengths (M,), clipped to the path."""
        return np.stack([np.interp(s, self.s, self.xy[:, 0]), np.interp(s, self.s, self.xy[:, 1])], axis=-1)

    def project(self, xy: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Arc length and signed lateral offset (left positive) of points (M, 2), both (M,)."""
        xy = np.atleast_2d(xy)
        nearest = np.argmin(((xy[:, None, :] - self.xy[None, :, :]) ** 2).sum(-1), axis=1)
        delta = xy - self.xy[nearest]
        along = (delta * self.tangent[nearest]).sum(1)
        across = (delta * self.normal[nearest]).sum(1)
        return self.s[nearest] + along, across

    def offset(self, distance: float | FloatArray) -> Path:
        """The path shifted to the left by `distance` (scalar or per vertex), vertex by vertex."""
        shift = np.broadcast_to(np.asarray(distance, dtype=np.float64), (len(self.xy),))
        return Path(self.xy + shift[:, None] * self.normal)

    def reversed(self) -> Path:
        """The same curve, run from its end to its start."""
        return Path(np.ascontiguousarray(self.xy[::-1]))


def wrap(angle: FloatArray | float) -> FloatArray | float:
    """Angle in [-pi, pi)."""
    return (np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi


def unit(heading: float) -> FloatArray:
    """(2,) unit vector of a heading."""
    return np.array([np.cos(heading), np.sin(heading)])


def left_of(heading: float) -> FloatArray:
    """(2,) unit vector to the left of a heading."""
    return np.array([-np.sin(heading), np.cos(heading)])


def integrate_curvature(start: FloatArray, heading: float, curvature: FloatArray) -> Path:
    """The curve from `start` (2,) and `heading` with (N,) curvatures, one per step of STEP_M."""
    headings = heading + np.concatenate([[0.0], np.cumsum(curvature)]) * STEP_M
    middle = 0.5 * (headings[:-1] + headings[1:])
    steps = STEP_M * np.stack([np.cos(middle), np.sin(middle)], axis=1)
    return Path(np.vstack([start, start + np.cumsum(steps, axis=0)]))


def smooth_step(u: FloatArray) -> FloatArray:
    """Quintic from 0 to 1 over u in [0, 1] with zero first and second derivative at both ends."""
    u = np.clip(u, 0.0, 1.0)
    return u * u * u * (10.0 + u * (6.0 * u - 15.0))


def resample(xy: FloatArray, step_m: float = STEP_M) -> FloatArray:
    """Polyline (N, 2) with vertices at equal distances of about `step_m`; the ends stay."""
    s = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(xy, axis=0).T))])
    grid = np.linspace(0.0, s[-1], max(2, round(s[-1] / step_m) + 1))
    return np.stack([np.interp(grid, s, xy[:, 0]), np.interp(grid, s, xy[:, 1])], axis=1)


def connect(
    start: FloatArray, start_heading: float, end: FloatArray, end_heading: float, step_m: float = STEP_M
) -> Path:
    """Smooth curve between two poses: the cubic Bezier that is closest to a circular arc where one exists.

    Handles are 4/3 tan(t/4) / (2 sin(t/2)) of the chord for a turn of angle t, which makes a symmetric turn a
    circle within 0.03 %; for nearly straight ones 0.36, a little softer than the limit of 1/3.
    """
    turn = abs(float(wrap(end_heading - start_heading)))
    chord = float(np.hypot(*(end - start)))
    factor = 0.36 if turn < 0.15 else 4.0 / 3.0 * np.tan(turn / 4.0) / (2.0 * np.sin(turn / 2.0))
    handle = factor * chord
    control = np.array([start, start + handle * unit(start_heading), end - handle * unit(end_heading), end])
    u = np.linspace(0.0, 1.0, max(8, int(4 * chord)))[:, None]
    basis = np.hstack([(1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u**2 * (1 - u), u**3])
    return Path(resample(basis @ control, step_m))


def strip(left: FloatArray, right: FloatArray) -> FloatArray:
    """(N, 2) ring (not closed) between a left and a right border that run the same way, counter-clockwise."""
    return np.vstack([right, left[::-1]])


def gaussian_smooth(values: FloatArray, sigma_samples: float) -> FloatArray:
    """Values (N,) or (N, D) smoothed along axis 0; ends are extended by point reflection, so they stay."""
    radius = max(1, int(3 * sigma_samples))
    if len(values) <= radius + 1:
        return values
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_samples) ** 2)
    kernel /= kernel.sum()
    columns = values.reshape(len(values), -1)
    head = 2 * columns[:1] - columns[radius:0:-1]
    tail = 2 * columns[-1:] - columns[-2 : -radius - 2 : -1]
    padded = np.vstack([head, columns, tail])
    smoothed = np.stack([np.convolve(padded[:, i], kernel, "valid") for i in range(columns.shape[1])], axis=1)
    return smoothed.reshape(values.shape)


def box_corners(
    x: FloatArray, y: FloatArray, heading: FloatArray, length: FloatArray, width: FloatArray
) -> FloatArray:
    """(K, 4, 2) corners of boxes, counter-clockwise from the front left; arguments (K,), centre poses."""
    cos, sin = np.cos(heading), np.sin(heading)
    along = 0.5 * np.asarray(length)[..., None] * np.array([1.0, -1.0, -1.0, 1.0])
    across = 0.5 * np.asarray(width)[..., None] * np.array([1.0, 1.0, -1.0, -1.0])
    corner_x = np.asarray(x)[..., None] + along * cos[..., None] - across * sin[..., None]
    corner_y = np.asarray(y)[..., None] + along * sin[..., None] + across * cos[..., None]
    return np.stack([corner_x, corner_y], axis=-1)
