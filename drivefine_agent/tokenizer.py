"""Trajectory <-> action ids. Grid points, not bin centres: a standing vehicle decodes to exact zeros."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivefine_agent.actions import MASKED, ActionSpec, ValueGrid
from drivefine_agent.constants import NUM_POSE_FIELDS
from drivefine_agent.errors import TrajectoryError
from drivefine_agent.geometry.indices import PoseIndex


@dataclass(frozen=True)
class ClipCounts:
    """How much of a set of trajectories lay outside the tables and was moved to their edge."""

    num_trajectories: int
    num_clipped_trajectories: int
    num_clipped_positions: int
    num_clipped_headings: int

    def __add__(self, other: ClipCounts) -> ClipCounts:
        """Counts of both sets together."""
        return ClipCounts(
            self.num_trajectories + other.num_trajectories,
            self.num_clipped_trajectories + other.num_clipped_trajectories,
            self.num_clipped_positions + other.num_clipped_positions,
            self.num_clipped_headings + other.num_clipped_headings,
        )


@dataclass(frozen=True)
class ActionTokenizer:
    """Encodes local poses as action ids and back; every number of it comes from `spec`."""

    spec: ActionSpec = field(default_factory=ActionSpec)

    def encode(self, poses: ArrayLike) -> NDArray[np.int64]:
        """Action ids of trajectories, clipped to the tables.

        Args:
          poses: (..., 8, 3) x [m], y [m], heading [rad], ego frame at t = 0; headings of any winding.

        Returns:
          (..., 24) ids in [0, num_actions), pose-major: x, y, heading of pose 0, then of pose 1, ...

        Raises:
          TrajectoryError: if the shape is wrong or a value is not finite.
        """
        poses = self._checked(poses)
        return self.encode_poses(poses).reshape(*poses.shape[:-2], self.spec.answer_length)

    def encode_poses(self, poses: ArrayLike) -> NDArray[np.int64]:
        """(..., 3) ids of single poses (..., 3), clipped; also used for the history in the prompt."""
        poses = np.asarray(poses, dtype=np.float64)
        ids = np.empty(poses.shape, dtype=np.int64)
        ids[..., : PoseIndex.HEADING] = self.encode_spatial(poses[..., : PoseIndex.HEADING])
        heading = _nearest_bin(_wrapped_degrees(poses[..., PoseIndex.HEADING]), self.spec.heading_deg)
        ids[..., PoseIndex.HEADING] = self.spec.heading_offset + _into_table(heading, self.spec.heading_deg)
        return ids

    def encode_spatial(self, values: ArrayLike) -> NDArray[np.int64]:
        """Ids of plain numbers (...) in the spatial table, clipped; velocities use it too, in m/s."""
        return _into_table(
            _nearest_bin(np.asarray(values, np.float64), self.spec.spatial_m), self.spec.spatial_m
        )

    def decode(self, action_ids: ArrayLike) -> NDArray[np.float64]:
        """Poses of complete answers.

        Args:
          action_ids: (..., 24) ids; slots 3k and 3k+1 from the spatial table, 3k+2 from the heading table.

        Returns:
          (..., 8, 3) float64 x [m], y [m], heading [rad].

        Raises:
          ValueError: if a slot is masked or holds an id of the wrong table.
        """
        ids = np.asarray(action_ids, dtype=np.int64)
        if ids.ndim == 0 or ids.shape[-1] != self.spec.answer_length:
            raise ValueError(
                f"expected action ids of shape (..., {self.spec.answer_length}), got {ids.shape}"
            )
        ids = ids.reshape(*ids.shape[:-1], self.spec.num_poses, NUM_POSE_FIELDS)
        bins = ids - np.array([0, 0, self.spec.heading_offset])
        sizes = np.array([self.spec.spatial_m.num_bins] * 2 + [self.spec.heading_deg.num_bins])
        if not ((bins >= 0) & (bins < sizes)).all():
            where = tuple(int(i) for i in np.argwhere((bins < 0) | (bins >= sizes))[0])
            what = "is still masked" if ids[where] == MASKED else f"holds id {ids[where]} of the wrong table"
            raise ValueError(
                f"an answer must be complete and use each table in its own slots: {where} {what}"
            )
        poses = np.empty(bins.shape, dtype=np.float64)
        spatial, heading = self.spec.spatial_m, self.spec.heading_deg
        poses[..., : PoseIndex.HEADING] = (bins[..., : PoseIndex.HEADING] - spatial.zero_index) * spatial.step
        poses[..., PoseIndex.HEADING] = np.deg2rad(
            (bins[..., PoseIndex.HEADING] - heading.zero_index) * heading.step
        )
        return poses

    def is_clipped(self, poses: ArrayLike) -> NDArray[np.bool_]:
        """(..., 8, 3) where encoding moves a value by more than half a step, to the table's edge."""
        poses = self._checked(poses)
        clipped = np.empty(poses.shape, dtype=bool)
        clipped[..., : PoseIndex.HEADING] = _is_outside(poses[..., : PoseIndex.HEADING], self.spec.spatial_m)
        clipped[..., PoseIndex.HEADING] = _is_outside(
            _wrapped_degrees(poses[..., PoseIndex.HEADING]), self.spec.heading_deg
        )
        return clipped

    def count_clipped(self, poses: ArrayLike) -> ClipCounts:
        """Counts over trajectories (..., 8, 3); report them, they are rare and never silent."""
        clipped = self.is_clipped(poses).reshape(-1, self.spec.num_poses, NUM_POSE_FIELDS)
        return ClipCounts(
            num_trajectories=len(clipped),
            num_clipped_trajectories=int(clipped.any(axis=(1, 2)).sum()),
            num_clipped_positions=int(clipped[..., : PoseIndex.HEADING].sum()),
            num_clipped_headings=int(clipped[..., PoseIndex.HEADING].sum()),
        )

    def _checked(self, poses: ArrayLike) -> NDArray[np.float64]:
        poses = np.asarray(poses, dtype=np.float64)
        expected = (self.spec.num_poses, NUM_POSE_FIELDS)
        if poses.shape[-2:] != expected:
            raise TrajectoryError(
                f"expected poses of shape (..., {expected[0]}, {expected[1]}), got {poses.shape}: "
                "resample to 0.5 s before encoding"
            )
        if not np.isfinite(poses).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(poses))[0])
            raise TrajectoryError(
                f"poses must be finite, got {poses[where]} at index {where}: drop such trajectories"
            )
        return poses


def _wrapped_degrees(heading_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    """Degrees in (-180, 180] of headings in radians."""
    degrees = np.rad2deg(heading_rad)
    return degrees - 360.0 * np.ceil((degrees - 180.0) / 360.0)


def _nearest_bin(values: NDArray[np.float64], grid: ValueGrid) -> NDArray[np.int64]:
    """Nearest bin of an unlimited grid: may lie outside the table."""
    return np.rint(values / grid.step).astype(np.int64) + grid.zero_index


def _into_table(bins: NDArray[np.int64], grid: ValueGrid) -> NDArray[np.int64]:
    return bins % grid.num_bins if grid.is_periodic else np.clip(bins, 0, grid.num_bins - 1)


def _is_outside(values: NDArray[np.float64], grid: ValueGrid) -> NDArray[np.bool_]:
    bins = _nearest_bin(values, grid)
    return np.zeros(bins.shape, dtype=bool) if grid.is_periodic else (bins < 0) | (bins >= grid.num_bins)
