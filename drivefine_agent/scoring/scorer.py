"""The one entry: proposals of a scene in, sub-scores and PDM score of NAVSIM 1.1 out.

Every proposal is scored beside the reference planner alone, so its score does not depend on the rest of the
batch.

Shape letters: P proposals, S = 41 simulated states, K tracks.
Source: pdm-scorer 3 and 4; NAVSIM v1.1, pdm_score and PDMScorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivefine_agent.constants import NUM_POSE_FIELDS, NUM_POSES, NUM_SIM_STATES
from drivefine_agent.errors import TrajectoryError
from drivefine_agent.geometry.indices import StateIndex
from drivefine_agent.scoring.aggregate import pdm_score_v1, progress_against_reference, progress_within_batch
from drivefine_agent.scoring.areas import ego_areas
from drivefine_agent.scoring.collisions import no_at_fault_collisions
from drivefine_agent.scoring.comfort import comfort
from drivefine_agent.scoring.contacts import TrackBoxes
from drivefine_agent.scoring.drivable_area import drivable_area_compliance
from drivefine_agent.scoring.driving_direction import driving_direction_compliance
from drivefine_agent.scoring.footprint import CENTER, footprint_points
from drivefine_agent.scoring.polygons import DrivablePolygons
from drivefine_agent.scoring.progress import raw_progress
from drivefine_agent.scoring.simulate import simulate
from drivefine_agent.scoring.time_to_collision import time_to_collision_within_bound
from drivefine_agent.scoring.trajectory import proposals_to_reference
from drivefine_agent.scoring.types import FloatArray, ScoringScene, SubScoresV1

_POSES_SHAPE = (NUM_POSES, NUM_POSE_FIELDS)


@dataclass(frozen=True)
class Surroundings:
    """What simulated states are scored against."""

    polygons: DrivablePolygons
    tracks: TrackBoxes
    centerline: FloatArray
    """(N, 2) vertices of the route's centreline [m]."""

    @classmethod
    def from_scene(cls, scene: ScoringScene) -> Surroundings:
        """Views of a scene's arrays; kept with the scene, and so is what the kernels derive from them."""
        return scene.kept(
            "surroundings_v1",
            lambda: cls(DrivablePolygons.from_scene(scene), TrackBoxes.from_scene(scene), scene.centerline),
        )


@dataclass(frozen=True)
class StateScoresV1:
    """What simulated states are worth before progress is normalised; every field is (P,)."""

    no_at_fault_collisions: FloatArray
    drivable_area_compliance: FloatArray
    driving_direction_compliance: FloatArray
    progress_m: FloatArray
    time_to_collision_within_bound: FloatArray
    comfort: FloatArray
    collision_index: FloatArray
    """Index of the first state with an at-fault collision, inf without one."""
    time_to_collision_index: FloatArray
    """Index of the first state with a time-to-collision violation, inf without one."""

    @property
    def multiplier(self) -> FloatArray:
        """(P,) NC x DAC."""
        return self.no_at_fault_collisions * self.drivable_area_compliance


def score_states(
    states: FloatArray, surroundings: Surroundings, ignored_tracks: NDArray[np.bool_] | None = None
) -> StateScoresV1:
    """Sub-scores of simulated states, each proposal for itself.

    Args:
      states: (P, 41, 11) simulated states (simulate.simulate).
      surroundings: map, tracks and centreline.
      ignored_tracks: (K,) tracks that count neither for collisions nor for time to collision.

    Returns:
      Sub-scores and raw progress.
    """
    points = footprint_points(states)
    areas = ego_areas(points, states[..., [StateIndex.X, StateIndex.Y]], surroundings.polygons)
    collisions, collision_index = no_at_fault_collisions(
        states, points, areas, surroundings.tracks, ignored_tracks
    )
    time_to_collision, ttc_index = time_to_collision_within_bound(
        states, points, areas, surroundings.tracks, ignored_tracks
    )
    return StateScoresV1(
        no_at_fault_collisions=collisions,
        drivable_area_compliance=drivable_area_compliance(areas.non_drivable),
        driving_direction_compliance=driving_direction_compliance(points[:, :, CENTER], areas.off_route),
        progress_m=raw_progress(points[:, :, CENTER], surroundings.centerline),
        time_to_collision_within_bound=time_to_collision,
        comfort=comfort(states),
        collision_index=collision_index,
        time_to_collision_index=ttc_index,
    )


def score_states_v1(
    states: FloatArray,
    surroundings: Surroundings,
    *,
    normalise: Literal["batch", "reference"],
    reference_progress_m: float | None = None,
    reference_multiplier: float | None = None,
    ignored_tracks: NDArray[np.bool_] | None = None,
) -> SubScoresV1:
    """Sub-scores and PDM score of simulated states.

    Args:
      states: (P, 41, 11) simulated states.
      surroundings: map, tracks and centreline.
      normalise: `batch` measures progress against the best of the P proposals (PDM-Closed's choice among its
        own), `reference` measures each proposal against the reference planner alone.
      reference_progress_m: raw progress of the reference [m]; with `reference` only.
      reference_multiplier: NC x DAC of the reference; with `reference` only.
      ignored_tracks: (K,) tracks that never count.

    Raises:
      ValueError: if the reference's numbers are missing, or given where they are not used.
    """
    raw = score_states(states, surroundings, ignored_tracks)
    if normalise == "batch":
        if reference_progress_m is not None or reference_multiplier is not None:
            raise ValueError("normalise='batch' compares the proposals with each other: give no reference")
        progress = progress_within_batch(raw.progress_m, raw.multiplier)
    elif normalise == "reference":
        if reference_progress_m is None or reference_multiplier is None:
            raise ValueError(
                "normalise='reference' needs reference_progress_m and reference_multiplier, got one or none"
            )
        progress = progress_against_reference(
            raw.progress_m, raw.multiplier, reference_progress_m, reference_multiplier
        )
    else:
        raise ValueError(f"normalise must be 'batch' or 'reference', got {normalise!r}")
    return SubScoresV1(
        no_at_fault_collisions=raw.no_at_fault_collisions,
        drivable_area_compliance=raw.drivable_area_compliance,
        driving_direction_compliance=raw.driving_direction_compliance,
        ego_progress=progress,
        time_to_collision_within_bound=raw.time_to_collision_within_bound,
        comfort=raw.comfort,
        score=pdm_score_v1(
            raw.no_at_fault_collisions,
            raw.drivable_area_compliance,
            raw.driving_direction_compliance,
            progress,
            raw.time_to_collision_within_bound,
            raw.comfort,
        ),
    )


def score_v1(scene: ScoringScene, poses: ArrayLike) -> SubScoresV1:
    """Sub-scores and PDM score of proposals, each beside the reference planner alone.

    Args:
      scene: the prepared scene.
      poses: (P, 8, 3) x [m], y [m], heading [rad] at 0.5 ... 4.0 s in the ego frame of t = 0; float32 is
        widened.

    Raises:
      TrajectoryError: if the shape is wrong or a row is not finite, or leads to states that are not; names
        the row.
    """
    return _score_against_reference(scene, checked_poses(scene, poses))


def score_v1_rows(
    scene: ScoringScene, poses: Sequence[ArrayLike] | FloatArray
) -> tuple[SubScoresV1, list[str | None]]:
    """Like `score_v1`, but a bad row costs no other row its score.

    Args:
      scene: the prepared scene.
      poses: P rows, each (8, 3).

    Returns:
      Sub-scores, NaN in bad rows, and per row the reason, None for good ones.
    """
    states, errors = good_poses(scene, poses)
    is_good = np.array([error is None for error in errors], dtype=bool)
    scores = _score_against_reference(scene, states[is_good])
    filled = {}
    for name in SubScoresV1.names():
        filled[name] = np.full(len(errors), np.nan)
        filled[name][is_good] = getattr(scores, name)
    return SubScoresV1(**filled), errors


def checked_poses(scene: ScoringScene, poses: ArrayLike) -> FloatArray:
    """(P, 41, 11) simulated states of proposals.

    Args:
      scene: where they start.
      poses: (P, 8, 3) in the ego frame of t = 0.

    Raises:
      TrajectoryError: if the shape is wrong or a row is not finite, or leads to states that are not; names
        the row.
    """
    array = _as_array(poses)
    if array is None or array.ndim != 3 or array.shape[1:] != _POSES_SHAPE:
        raise TrajectoryError(
            f"expected numeric poses of shape (P, {NUM_POSES}, {NUM_POSE_FIELDS}), got {_described(poses)} "
            f"for scene {scene.token!r}: resample to 0.5 s before scoring"
        )
    array = array.astype(np.float64)
    finite = np.isfinite(array).all(axis=(1, 2))
    if not finite.all():
        raise TrajectoryError(_not_finite_message(array, int(np.argmin(finite)), scene.token))
    states = simulated(scene, array)
    finite = np.isfinite(states).all(axis=(1, 2))
    if not finite.all():
        raise TrajectoryError(_no_states_message(int(np.argmin(finite)), scene.token))
    return states


def good_poses(
    scene: ScoringScene, poses: Sequence[ArrayLike] | FloatArray
) -> tuple[FloatArray, list[str | None]]:
    """Simulated states (P, 41, 11), NaN in rows that cannot be simulated, and per row why not.

    Args:
      scene: where they start.
      poses: P rows, each (8, 3).
    """
    errors = [_row_error(given, row, scene.token) for row, given in enumerate(poses)]
    states = np.full((len(poses), NUM_SIM_STATES, len(StateIndex)), np.nan)
    rows = [row for row, error in enumerate(errors) if error is None]
    if rows:
        states[rows] = simulated(scene, np.array([np.asarray(poses[row], dtype=np.float64) for row in rows]))
    for row in rows:
        if not np.isfinite(states[row]).all():
            errors[row] = _no_states_message(row, scene.token)
            states[row] = np.nan
    return states, errors


def simulated(scene: ScoringScene, poses: FloatArray) -> FloatArray:
    """(P, 41, 11) states of the simulated vehicle that follows poses (P, 8, 3)."""
    reference = proposals_to_reference(scene.initial_state, scene.timestamp_us, poses)
    return simulate(reference, scene.initial_state)


def _score_against_reference(scene: ScoringScene, states: FloatArray) -> SubScoresV1:
    return score_states_v1(
        states,
        Surroundings.from_scene(scene),
        normalise="reference",
        reference_progress_m=scene.reference_progress,
        reference_multiplier=scene.reference_multiplier,
    )


def _as_array(given: ArrayLike) -> NDArray[Any] | None:
    """The given numbers as an array; None where they are not numbers or have no common shape."""
    try:
        array = np.asarray(given)
    except ValueError:  # nested lists of unequal lengths
        return None
    return array if array.dtype.kind in "fiu" else None


def _described(given: ArrayLike) -> str:
    try:
        array = np.asarray(given)
    except ValueError:
        return "nested lists of unequal lengths"
    return f"{array.dtype} of shape {array.shape}"


def _row_error(given: ArrayLike, row: int, token: str) -> str | None:
    array = _as_array(given)
    if array is None or array.shape != _POSES_SHAPE:
        return (
            f"expected numeric poses of shape {_POSES_SHAPE}, got {_described(given)} "
            f"in row {row} for scene {token!r}: resample to 0.5 s before scoring"
        )
    if not np.isfinite(array).all():
        return _not_finite_message(array[None], 0, token, row)
    return None


def _not_finite_message(poses: FloatArray, index: int, token: str, row: int | None = None) -> str:
    pose, field = np.argwhere(~np.isfinite(poses[index]))[0]
    name = ("x", "y", "heading")[field]
    return (
        f"poses must be finite, got {poses[index, pose, field]} for {name} of pose {pose} in row "
        f"{index if row is None else row} for scene {token!r}"
    )


def _no_states_message(row: int, token: str) -> str:
    return (
        f"poses must lie within reach of the vehicle, but following row {row} for scene {token!r} leads to "
        "states that are not finite: check the units (metres, radians)"
    )
