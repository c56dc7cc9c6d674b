"""Which rule cost a trajectory its sub-scores, when, and against what: the scorer's own decisions, in words.

Nothing is judged here. Every reason is read off the arrays from which the scorer makes its sub-scores (first
contacts, area flags, filtered series ...), so a rule has a reason exactly where its sub-score is below 1.

Source: pdm-scorer 4; the rules themselves are documented in the modules that hold them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivefine_agent.constants import NUM_SIM_STATES, SIM_INTERVAL_S, TRACK_TYPES
from drivefine_agent.geometry.indices import StateIndex
from drivefine_agent.scoring.areas import EgoAreas, ego_areas
from drivefine_agent.scoring.collisions import AGENT_SCORE, STATIC_OBJECT_SCORE, at_fault_contacts
from drivefine_agent.scoring.comfort import (
    COMFORT_BOUNDS,
    COMFORT_SERIES,
    comfort_series,
    history_comfort_series,
)
from drivefine_agent.scoring.contacts import TrackBoxes, bumper_contacts
from drivefine_agent.scoring.driving_direction import COMPLIANT_BELOW_M, VIOLATED_FROM_M, off_route_distance
from drivefine_agent.scoring.extended_comfort import (
    EXTENDED_COMFORT_BOUNDS,
    EXTENDED_COMFORT_SERIES,
    extended_comfort_differences,
)
from drivefine_agent.scoring.footprint import CENTER, footprint_points
from drivefine_agent.scoring.lane_keeping import MAX_DEVIATION_M, NUM_STATES_TO_FAIL, deviating_run
from drivefine_agent.scoring.polygons import DrivablePolygons
from drivefine_agent.scoring.progress import raw_progress
from drivefine_agent.scoring.scorer import Surroundings, checked_poses, score_states_v1
from drivefine_agent.scoring.scorer_v2 import (
    HumanFilter,
    SurroundingsV2,
    Traffic,
    human_zeros_in,
    reactive_tracks,
    score_simulated_v2,
)
from drivefine_agent.scoring.time_to_collision import LOOK_AHEAD_STEPS, time_to_collision_violations
from drivefine_agent.scoring.traffic_lights import red_light_contacts
from drivefine_agent.scoring.types import HUMAN_FILTERED, FloatArray, ScoringScene, ScoringSceneV2

CORNER_NAMES = ("front left", "rear left", "rear right", "front right")  # in the order of CornerIndex
_NUM_TTC_STATES_V2 = NUM_SIM_STATES - LOOK_AHEAD_STEPS[-1]


@dataclass(frozen=True)
class Reason:
    """Why one sub-score is below 1."""

    rule: str
    """NAVSIM's name of the sub-score."""
    value: float
    """The sub-score, before the human-penalty filter."""
    text: str
    """For people."""
    state: int | None = None
    """Simulated state (0.1 s apart) in which it happened; None where it is about the whole trajectory."""
    track: int | None = None
    """Index of the road user it happened with."""
    is_lifted: bool = False
    """The human-penalty filter counts it as 1: the recorded driver fails this rule here too."""

    @property
    def time_s(self) -> float | None:
        """When it happened."""
        return None if self.state is None else self.state * SIM_INTERVAL_S


@dataclass(frozen=True)
class Explained:
    """A scored trajectory, what was simulated, and the reasons."""

    scores: Mapping[str, float]
    """Every column of the scorer's result."""
    states: FloatArray
    """(41, 11) simulated states."""
    tracks: TrackBoxes
    """The road users as this trajectory met them."""
    reasons: tuple[Reason, ...]
    """In the order of the rules; those of the collision rules name the first contact of each track."""


def explain_v1(scene: ScoringScene, poses: ArrayLike) -> Explained:
    """PDMS of one trajectory under NAVSIM 1.1's rules, and why.

    Args:
      scene: the prepared scene.
      poses: (8, 3) x [m], y [m], heading [rad] at 0.5 ... 4.0 s in the ego frame of t = 0.

    Raises:
      TrajectoryError: as `score_v1`.
    """
    states = checked_poses(scene, np.asarray(poses)[None])
    around = Surroundings.from_scene(scene)
    result = score_states_v1(
        states,
        around,
        normalise="reference",
        reference_progress_m=scene.reference_progress,
        reference_multiplier=scene.reference_multiplier,
    )
    points = footprint_points(states)
    areas = _areas(states, points, around.polygons)
    reasons = [
        *_collisions(states, points, areas, around.tracks, scene),
        *_drivable_area(points, areas, around.polygons),
        *_driving_direction(points, areas.off_route),
        *_time_to_collision(states, points, areas, around.tracks, scene),
        *_comfort("comfort", comfort_series(states)[0], 0),
    ]
    scores = {name: float(getattr(result, name)[0]) for name in result.names()}
    if scores["ego_progress"] < 1.0:
        multiplier = scores["no_at_fault_collisions"] * scores["drivable_area_compliance"]
        progress_m = float(raw_progress(points[:, :, CENTER], around.centerline)[0])
        text = f"{progress_m:.1f} m along the route, the reference planner {scene.reference_progress:.1f} m"
        if multiplier < 1.0:
            text += f" (times {multiplier:g})"
        reasons.append(Reason("ego_progress", scores["ego_progress"], text))
    return Explained(scores, states[0], around.tracks, tuple(reasons))


def explain_v2(
    scene: ScoringSceneV2,
    poses: ArrayLike,
    *,
    traffic: Traffic = "non_reactive",
    human_penalty_filter: HumanFilter = "true",
) -> Explained:
    """Sub-scores of one trajectory under NAVSIM 2.2's rules up to extended comfort, and why.

    Args:
      scene: the prepared scene.
      poses: (8, 3), as of `explain_v1`.
      traffic: whether the others react.
      human_penalty_filter: the rule of the filter; reasons that it lifts are marked, not left out.

    Raises:
      TrajectoryError, SceneError: as `score_v2`.
    """
    states = checked_poses(scene, np.asarray(poses)[None])
    result = score_simulated_v2(scene, states, traffic=traffic, human_penalty_filter=human_penalty_filter)
    around = SurroundingsV2.from_scene(scene)
    ignored: NDArray[np.bool_] | None = scene.overlaps_at_start
    if traffic == "reactive":
        around, ignored = replace(around, tracks=reactive_tracks(scene, states[0])), None
    points = footprint_points(states)
    center = points[:, :, CENTER]
    areas = _areas(states, points, around.polygons)
    reasons = [
        *_collisions(states, points, areas, around.tracks, scene, ignored),
        *_drivable_area(points, areas, around.polygons),
        *_driving_direction(points, areas.off_route & ~areas.center_in_intersection),
        *_red_lights(points, around, scene.red_light_ids),
        *_time_to_collision(states[:, :_NUM_TTC_STATES_V2], points, areas, around.tracks, scene, ignored),
        *_lane_keeping(center, areas, around.centerline),
        *_comfort(
            "history_comfort",
            history_comfort_series(states, scene.history_states)[0],
            len(scene.history_states),
        ),
    ]
    scores = {name: float(getattr(result, name)[0]) for name in result.names()}
    lifted: list[str] = []
    if human_penalty_filter != "false" and not scene.is_synthetic:
        zeros = human_zeros_in(scene, traffic)
        lifted = [name for name, is_zero in zip(HUMAN_FILTERED, zeros, strict=True) if is_zero]
    reasons = [replace(reason, is_lifted=reason.rule in lifted) for reason in reasons]
    if scores["ego_progress"] < 1.0:
        progress_m = float(raw_progress(center, around.centerline)[0])
        text = f"{progress_m:.1f} m along the route, the reference planner {scene.reference_progress:.1f} m"
        reasons.append(Reason("ego_progress", scores["ego_progress"], text))
    return Explained(scores, states[0], around.tracks, tuple(reasons))


def explain_extended_comfort(current: FloatArray, previous: FloatArray, interval_s: float) -> Reason | None:
    """Why extended comfort is 0; None where it is 1. Arguments and errors as of `extended_comfort`."""
    differences = extended_comfort_differences(current, previous, interval_s)
    parts = [
        f"{name} by {difference:.2f} > {bound:g} {unit}"
        for (name, unit), difference, bound in zip(
            EXTENDED_COMFORT_SERIES, differences, EXTENDED_COMFORT_BOUNDS, strict=True
        )
        if not difference <= bound
    ]
    if not parts:
        return None
    text = f"plans of two frames {interval_s:.1f} s apart differ (root mean square): " + ", ".join(parts)
    return Reason("two_frame_extended_comfort", 0.0, text)


def track_name(scene: ScoringScene, track: int) -> str:
    """For example `vehicle 4f2a`: the type and the first letters of the token."""
    kind = TRACK_TYPES[scene.track_type[track]].replace("_", " ")
    token = scene.track_tokens[track] if track < len(scene.track_tokens) else str(track)
    return f"{kind} {token[:4]}"


def _areas(states: FloatArray, points: FloatArray, polygons: DrivablePolygons) -> EgoAreas:
    return ego_areas(points, states[..., [StateIndex.X, StateIndex.Y]], polygons)


def _at(state: int) -> str:
    return f"at {state * SIM_INTERVAL_S:.1f} s"


def _collisions(
    states: FloatArray,
    points: FloatArray,
    areas: EgoAreas,
    tracks: TrackBoxes,
    scene: ScoringScene,
    ignored: NDArray[np.bool_] | None = None,
) -> Iterator[Reason]:
    """One reason per track that was run into, the earliest first."""
    at_fault, first = at_fault_contacts(states, points, areas, tracks, ignored)
    hit = np.flatnonzero(at_fault[0])
    for track in hit[np.argsort(first[0, hit], kind="stable")]:
        state = int(first[0, track])
        is_front = bumper_contacts(points[0, [state], :4], np.asarray(tracks.corners)[[state], track])[0]
        if tracks.is_stopped[track]:
            how = "which stands" if tracks.is_agent[track] else "a static object"
        elif is_front:
            how = "front contact"
        else:
            how = "side contact while across lanes or off the drivable area"
        yield Reason(
            "no_at_fault_collisions",
            AGENT_SCORE if tracks.is_agent[track] else STATIC_OBJECT_SCORE,
            f"at-fault collision {_at(state)} with {track_name(scene, track)} ({how})",
            state,
            int(track),
        )


def _time_to_collision(
    states: FloatArray,
    points: FloatArray,
    areas: EgoAreas,
    tracks: TrackBoxes,
    scene: ScoringScene,
    ignored: NDArray[np.bool_] | None = None,
) -> Iterator[Reason]:
    """One reason per track that would have been run into, the earliest first."""
    violated, first = time_to_collision_violations(states, points, areas, tracks, ignored)
    hit = np.flatnonzero(violated[0])
    for track in hit[np.argsort(first[0, hit], kind="stable")]:
        state, look = divmod(int(first[0, track]), len(LOOK_AHEAD_STEPS))
        ahead_s = LOOK_AHEAD_STEPS[look] * SIM_INTERVAL_S
        when = "touches" if ahead_s == 0.0 else f"{ahead_s:.1f} s from"
        text = f"time to collision {_at(state)}: {when} {track_name(scene, track)}"
        yield Reason("time_to_collision_within_bound", 0.0, text, state, int(track))


def _drivable_area(points: FloatArray, areas: EgoAreas, polygons: DrivablePolygons) -> Iterator[Reason]:
    outside = np.flatnonzero(areas.non_drivable[0])
    if len(outside) == 0:
        return
    state = int(outside[0])
    corners = points[0, state, :4]  # each for itself, as a footprint without extent
    alone = ego_areas(np.repeat(corners[:, None, None], 5, axis=2), corners[:, None], polygons).non_drivable
    names = " and ".join(CORNER_NAMES[i] for i in np.flatnonzero(alone[:, 0]))
    back = outside[-1] < NUM_SIM_STATES - 1
    text = f"leaves the drivable area {_at(state)}: {names} corner"
    if state == 0:
        text = f"starts off the drivable area: {names} corner"
    if back:
        text += f", back {_at(int(outside[-1]) + 1)}"
    yield Reason("drivable_area_compliance", 0.0, text, state)


def _driving_direction(points: FloatArray, off_route: NDArray[np.bool_]) -> Iterator[Reason]:
    way_m = off_route_distance(points[:, :, CENTER], off_route)[0]
    largest = float(way_m.max())
    if largest < COMPLIANT_BELOW_M:
        return
    limit_m, value = (COMPLIANT_BELOW_M, 0.5) if largest < VIOLATED_FROM_M else (VIOLATED_FROM_M, 0.0)
    state = int(np.argmax(way_m >= limit_m))
    text = f"{largest:.1f} m within 1.1 s off the route's lanes; {limit_m:g} m reached {_at(state)}"
    yield Reason("driving_direction_compliance", value, text, state)


def _red_lights(points: FloatArray, around: SurroundingsV2, ids: tuple[str, ...]) -> Iterator[Reason]:
    contacts = red_light_contacts(points[:, :, :CENTER], around.lights)
    if len(contacts):
        _, state, light = contacts[np.argmin(contacts[:, 1])]
        name = f" {ids[light]}" if light < len(ids) else ""
        text = f"stands in the red lane connector{name} {_at(int(state))}"
        yield Reason("traffic_light_compliance", 0.0, text, int(state))


def _lane_keeping(center: FloatArray, areas: EgoAreas, centerline: FloatArray) -> Iterator[Reason]:
    run = deviating_run(center, areas.center_in_intersection, centerline)[0]
    if run.max() >= NUM_STATES_TO_FAIL:
        state = int(np.argmax(run >= NUM_STATES_TO_FAIL))
        seconds = NUM_STATES_TO_FAIL * SIM_INTERVAL_S
        text = f"more than {MAX_DEVIATION_M} m beside the route's centre line for {seconds:g} s, {_at(state)}"
        yield Reason("lane_keeping", 0.0, text, state)


def _comfort(rule: str, series: FloatArray, num_past: int) -> Iterator[Reason]:
    """One reason for all series out of bounds; its state is that of the first, its text that of each worst.

    Args:
      rule: name of the sub-score.
      series: (6, H + 41) filtered.
      num_past: H, states before t = 0.
    """
    excess = np.maximum(series - COMFORT_BOUNDS[:, 1:], COMFORT_BOUNDS[:, :1] - series)  # >= 0: out of bounds
    failed = np.flatnonzero(excess.max(axis=1) >= 0.0)
    if len(failed) == 0:
        return
    parts = []
    for index in failed:
        name, unit = COMFORT_SERIES[index]
        worst = int(np.argmax(excess[index]))
        value = series[index, worst]
        low, high = COMFORT_BOUNDS[index]
        sign, bound = (">", high) if value >= high else ("<", low)
        when = (worst - num_past) * SIM_INTERVAL_S
        parts.append(f"{name} {value:.2f} {sign} {bound:g} {unit} at {when:.1f} s")
    is_out = (excess[:, num_past:] >= 0.0).any(axis=0)  # argmax of none: only the past is, which ends at 0
    yield Reason(rule, 0.0, "uncomfortable: " + ", ".join(parts), int(np.argmax(is_out)))
