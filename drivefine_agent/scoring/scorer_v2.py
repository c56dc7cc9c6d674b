"""Proposals of a scene in, sub-scores of NAVSIM 2.2 out, up to the extended comfort of frame pairs.

Every proposal is scored beside the reference planner alone. In reactive traffic the others react to the
proposal, so the reference is judged anew in the traffic of every proposal, as NAVSIM does.

The human-penalty filter lifts to 1 what the recorded driver fails too. Three rules exist in print: `true`
(since September 2025: everything that follows is computed from the lifted sub-scores), `legacy` (before: only
the columns are lifted, product and weighted average are not) and `false` (no filter).

Shape letters: P proposals, S = 41 simulated states, K tracks.
Source: pdm-scorer 3, 4 and 4.13-4.14; NAVSIM v2.2, pdm_score and PDMScorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivefine_agent.constants import NUM_SIM_STATES
from drivefine_agent.errors import SceneError, TrafficError
from drivefine_agent.geometry.indices import StateIndex
from drivefine_agent.scoring.aggregate_v2 import multiplier, relative_progress, weighted_average
from drivefine_agent.scoring.areas import ego_areas
from drivefine_agent.scoring.collisions import no_at_fault_collisions
from drivefine_agent.scoring.comfort import history_comfort
from drivefine_agent.scoring.contacts import TrackBoxes
from drivefine_agent.scoring.drivable_area import drivable_area_compliance
from drivefine_agent.scoring.drivable_map import polygons_from_arrays
from drivefine_agent.scoring.driving_direction import driving_direction_compliance
from drivefine_agent.scoring.footprint import CENTER, footprint_points
from drivefine_agent.scoring.lane_keeping import lane_keeping
from drivefine_agent.scoring.polygons import DrivablePolygons
from drivefine_agent.scoring.progress import raw_progress
from drivefine_agent.scoring.reactive_traffic import roll_out
from drivefine_agent.scoring.scorer import checked_poses, good_poses, simulated
from drivefine_agent.scoring.time_to_collision import LOOK_AHEAD_STEPS, time_to_collision_within_bound
from drivefine_agent.scoring.traffic_lights import RedLights, traffic_light_compliance
from drivefine_agent.scoring.types import HUMAN_FILTERED, FloatArray, ScoringSceneV2, SubScoresV2

Traffic = Literal["non_reactive", "reactive"]
HumanFilter = Literal["true", "legacy", "false"]
TRAFFIC: tuple[Traffic, ...] = ("non_reactive", "reactive")
HUMAN_FILTERS: tuple[HumanFilter, ...] = ("true", "legacy", "false")

_NUM_TTC_STATES = NUM_SIM_STATES - LOOK_AHEAD_STEPS[-1]  # the observation ends at 4 s


@dataclass(frozen=True)
class SurroundingsV2:
    """What simulated states are scored against."""

    polygons: DrivablePolygons
    tracks: TrackBoxes
    lights: RedLights
    centerline: FloatArray
    """(N, 2) vertices of the route's centreline [m]."""

    @classmethod
    def from_scene(cls, scene: ScoringSceneV2) -> SurroundingsV2:
        """The logged surroundings of a scene; of the tracks, leave `overlaps_at_start` out.

        Kept with the scene, and so is what the kernels derive from them.
        """
        return scene.kept(
            "surroundings_v2",
            lambda: cls(
                DrivablePolygons.from_scene(scene),
                TrackBoxes.from_scene(scene),
                red_lights(scene),
                scene.centerline,
            ),
        )


@dataclass(frozen=True)
class StateScoresV2:
    """What simulated states are worth before progress is normalised; every field is (P,)."""

    no_at_fault_collisions: FloatArray
    drivable_area_compliance: FloatArray
    driving_direction_compliance: FloatArray
    traffic_light_compliance: FloatArray
    progress_m: FloatArray
    time_to_collision_within_bound: FloatArray
    lane_keeping: FloatArray
    history_comfort: FloatArray
    collision_index: FloatArray
    """Index of the first state with an at-fault collision, inf without one."""
    time_to_collision_index: FloatArray
    """Index of the first state with a time-to-collision violation, inf without one."""

    @property
    def multiplier(self) -> FloatArray:
        """(P,) NC x DAC x DDC x TLC."""
        return multiplier(
            self.no_at_fault_collisions,
            self.drivable_area_compliance,
            self.driving_direction_compliance,
            self.traffic_light_compliance,
        )


def red_lights(scene: ScoringSceneV2) -> RedLights:
    """The red lane connectors of a scene as polygons."""
    polygons = polygons_from_arrays(
        scene.red_light_xy, scene.red_light_ring_offsets, scene.red_light_part_offsets
    )
    return RedLights(polygons, scene.red_light_on)


def score_states_v2(
    states: FloatArray,
    surroundings: SurroundingsV2,
    history: FloatArray | None,
    ignored_tracks: NDArray[np.bool_] | None = None,
) -> StateScoresV2:
    """Sub-scores of simulated states, each proposal for itself.

    Args:
      states: (P, 41, 11) simulated states (simulate.simulate).
      surroundings: map, tracks, lights and centreline.
      history: (H, 11) logged states before t = 0; None where comfort is not judged (it is 1 then).
      ignored_tracks: (K,) tracks that count neither for collisions nor for time to collision.
    """
    points = footprint_points(states)
    center = points[:, :, CENTER]
    areas = ego_areas(points, states[..., [StateIndex.X, StateIndex.Y]], surroundings.polygons)
    collisions, collision_index = no_at_fault_collisions(
        states, points, areas, surroundings.tracks, ignored_tracks
    )
    time_to_collision, ttc_index = time_to_collision_within_bound(
        states[:, :_NUM_TTC_STATES], points, areas, surroundings.tracks, ignored_tracks
    )
    return StateScoresV2(
        no_at_fault_collisions=collisions,
        drivable_area_compliance=drivable_area_compliance(areas.non_drivable),
        driving_direction_compliance=driving_direction_compliance(
            center, areas.off_route & ~areas.center_in_intersection
        ),
        traffic_light_compliance=traffic_light_compliance(points, surroundings.lights),
        progress_m=raw_progress(center, surroundings.centerline),
        time_to_collision_within_bound=time_to_collision,
        lane_keeping=lane_keeping(center, areas.center_in_intersection, surroundings.centerline),
        history_comfort=np.ones(len(states)) if history is None else history_comfort(states, history),
        collision_index=collision_index,
        time_to_collision_index=ttc_index,
    )


def planner_scores_v2(
    states: FloatArray, surroundings: SurroundingsV2, ignored_tracks: NDArray[np.bool_]
) -> FloatArray:
    """(P,) interim scores by which PDM-Closed chooses among its own proposals."""
    raw = score_states_v2(states, surroundings, None, ignored_tracks)
    progress = relative_progress(raw.progress_m, float(np.max(raw.progress_m * raw.multiplier)))
    return raw.multiplier * weighted_average(
        progress, raw.time_to_collision_within_bound, raw.lane_keeping, raw.history_comfort
    )


def human_zeros(raw: StateScoresV2) -> NDArray[np.bool_]:
    """(6,) which sub-scores of HUMAN_FILTERED are 0, of the recorded driver's own roll-out (P = 1)."""
    return np.array([getattr(raw, name)[0] == 0.0 for name in HUMAN_FILTERED])


@dataclass(frozen=True)
class ReactiveHuman:
    """What became of the recorded driver when the others reacted to it."""

    zeros: NDArray[np.bool_]
    """(6,) sub-scores of HUMAN_FILTERED that are 0."""
    error: str = ""
    """Why the traffic failed already for the driver; NAVSIM then fails the scene for everybody."""


def reactive_human(scene: ScoringSceneV2) -> ReactiveHuman:
    """The recorded driver in reactive traffic, rolled out at the first call and kept with the scene."""
    return scene.kept("reactive_human", lambda: _roll_out_human(scene))


def _roll_out_human(scene: ScoringSceneV2) -> ReactiveHuman:
    if scene.is_synthetic or scene.traffic is None:  # nobody drove on; nobody reacts
        return ReactiveHuman(np.zeros(len(HUMAN_FILTERED), dtype=bool))
    states = simulated(scene, scene.human_poses[None])
    try:
        tracks = roll_out(scene, states[0])
    except TrafficError as error:
        return ReactiveHuman(np.zeros(len(HUMAN_FILTERED), dtype=bool), str(error))
    seen = replace(SurroundingsV2.from_scene(scene), tracks=tracks)
    return ReactiveHuman(human_zeros(score_states_v2(states, seen, None)))


def human_zeros_in(scene: ScoringSceneV2, traffic: Traffic) -> NDArray[np.bool_]:
    """(6,) which sub-scores of HUMAN_FILTERED are 0 for the recorded driver in a kind of traffic."""
    return scene.human_zeros_log_replay if traffic == "non_reactive" else reactive_human(scene).zeros


def score_v2(
    scene: ScoringSceneV2,
    poses: ArrayLike,
    *,
    traffic: Traffic = "non_reactive",
    human_penalty_filter: HumanFilter = "true",
) -> SubScoresV2:
    """Sub-scores of proposals, each beside the reference planner alone.

    Args:
      scene: the prepared scene.
      poses: (P, 8, 3) x [m], y [m], heading [rad] at 0.5 ... 4.0 s in the ego frame of t = 0; float32 is
        widened.
      traffic: whether the others drive as recorded or react to the proposal.
      human_penalty_filter: the rule of the filter.

    Raises:
      TrajectoryError: if the shape is wrong or a row is not finite, or leads to states that are not; names
        the row.
      SceneError: if the scene cannot be scored in this traffic.
    """
    states = checked_poses(scene, poses)
    return score_simulated_v2(scene, states, traffic=traffic, human_penalty_filter=human_penalty_filter)


def score_v2_rows(
    scene: ScoringSceneV2,
    poses: Sequence[ArrayLike] | FloatArray,
    *,
    traffic: Traffic = "non_reactive",
    human_penalty_filter: HumanFilter = "true",
) -> tuple[SubScoresV2, FloatArray, list[str | None]]:
    """Like `score_v2`, but a bad row costs no other row its score.

    Returns:
      Sub-scores, NaN in bad rows; (P, 41, 11) simulated states, for extended comfort, NaN in bad rows; per
      row the reason, None for good ones.
    """
    states, errors = good_poses(scene, poses)
    is_good = np.array([error is None for error in errors], dtype=bool)
    rules: Any = {"traffic": traffic, "human_penalty_filter": human_penalty_filter}
    if traffic == "non_reactive":
        return _filled([score_simulated_v2(scene, states[is_good], **rules)], is_good), states, errors
    parts: list[SubScoresV2] = []
    for row in np.flatnonzero(is_good):  # one by one: the others' reaction to a single row can fail
        try:
            parts.append(score_simulated_v2(scene, states[row : row + 1], **rules))
        except SceneError as error:
            errors[row] = str(error)
            is_good[row] = False
            states[row] = np.nan
    return _filled(parts, is_good), states, errors


def score_simulated_v2(
    scene: ScoringSceneV2, states: FloatArray, *, traffic: Traffic, human_penalty_filter: HumanFilter
) -> SubScoresV2:
    """`score_v2` of simulated states (P, 41, 11)."""
    if traffic not in TRAFFIC:
        raise ValueError(f"traffic must be one of {TRAFFIC}, got {traffic!r}")
    if human_penalty_filter not in HUMAN_FILTERS:
        raise ValueError(f"human_penalty_filter must be one of {HUMAN_FILTERS}, got {human_penalty_filter!r}")
    surroundings = SurroundingsV2.from_scene(scene)
    if traffic == "non_reactive":
        raw = score_states_v2(states, surroundings, scene.history_states, scene.overlaps_at_start)
        reference_multiplier: FloatArray | float = scene.reference_multiplier
    else:
        raw, reference_multiplier = _score_reactively(scene, states, surroundings)
    best = np.maximum(raw.progress_m * raw.multiplier, scene.reference_progress * reference_multiplier)
    unfiltered = {name: getattr(raw, name) for name in HUMAN_FILTERED}
    filtered = unfiltered
    if human_penalty_filter != "false" and not scene.is_synthetic:
        zeros = human_zeros_in(scene, traffic)
        filtered = {
            name: np.ones_like(value) if is_zero else value
            for (name, value), is_zero in zip(unfiltered.items(), zeros, strict=True)
        }
    counted = unfiltered if human_penalty_filter == "legacy" else filtered
    progress = relative_progress(raw.progress_m, best)

    def average(values: dict[str, FloatArray]) -> FloatArray:
        return weighted_average(
            progress, values["time_to_collision_within_bound"], values["lane_keeping"], raw.history_comfort
        )

    return SubScoresV2(
        **filtered,
        ego_progress=progress,
        history_comfort=raw.history_comfort,
        multiplicative_metrics_prod=_product(counted),
        pdm_score=_product(unfiltered) * average(unfiltered),
        weighted_metrics=np.stack(
            [
                progress,
                counted["time_to_collision_within_bound"],
                counted["lane_keeping"],
                raw.history_comfort,
            ],
            axis=-1,
        ),
    )


def _score_reactively(
    scene: ScoringSceneV2, states: FloatArray, surroundings: SurroundingsV2
) -> tuple[StateScoresV2, FloatArray]:
    """Scores of each proposal in its own traffic, and (P,) the reference's multiplier in that traffic."""
    parts = []
    for row in range(len(states)):
        seen = replace(surroundings, tracks=reactive_tracks(scene, states[row]))
        pair = np.stack([scene.reference_states, states[row]])
        parts.append(score_states_v2(pair, seen, scene.history_states))
    names = StateScoresV2.__dataclass_fields__
    own = {name: np.array([getattr(part, name)[1] for part in parts]) for name in names}
    return StateScoresV2(**own), np.array([part.multiplier[0] for part in parts])


def reactive_tracks(scene: ScoringSceneV2, states: FloatArray) -> TrackBoxes:
    """The other road users as they react to simulated states (41, 11) of the ego.

    Raises:
      SceneError: if the scene was prepared without its lanes, or NAVSIM's traffic fails on it.
    """
    if scene.traffic is None:
        raise SceneError(
            f"scene {scene.token!r} was prepared without what reactive traffic needs: build it from logs and "
            "maps, or convert it with the maps at hand"
        )
    if error := reactive_human(scene).error:
        raise TrafficError(error)
    return roll_out(scene, states)


def _product(values: dict[str, FloatArray]) -> FloatArray:
    """Of the first four sub-scores of HUMAN_FILTERED."""
    return multiplier(*(values[name] for name in HUMAN_FILTERED[:4]))


def _filled(parts: Sequence[SubScoresV2], is_good: NDArray[np.bool_]) -> SubScoresV2:
    """The scores of the good rows at their places, NaN in the others."""
    fields = {}
    for name in SubScoresV2.__dataclass_fields__:
        width = (4,) if name == "weighted_metrics" else ()
        fields[name] = np.full((len(is_good), *width), np.nan)
        if parts:
            fields[name][is_good] = np.concatenate([getattr(part, name) for part in parts])
    return SubScoresV2(**fields)
