"""From finished evaluations to the report's content: which scenes, what happened in them, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drivefine_agent.constants import DRIVING_COMMANDS, NUM_POSES
from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import future_poses
from drivefine_agent.data.sensors import read_image
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.evaluation.camera_view import ground_height
from drivefine_agent.evaluation.comparison import SHORT_NAMES, SHORT_NAMES_V2
from drivefine_agent.evaluation.dataset import SplitScenes
from drivefine_agent.evaluation.job import BENCHMARKS, FRONT_CAMERA, RULE_SETS, TWO_STAGE
from drivefine_agent.evaluation.outcomes import FINAL, GENERATED
from drivefine_agent.evaluation.paths import (
    GENERATED_STYLE,
    HUMAN_STYLE,
    OTHER_COLOURS,
    REFINED_STYLE,
    LineStyle,
)
from drivefine_agent.evaluation.report import HUMAN, AgentEntry, PlanStyle, Report, SceneEntry
from drivefine_agent.evaluation.report_runs import Run
from drivefine_agent.evaluation.run import SceneSource
from drivefine_agent.evaluation.scene_choice import choose_scenes, describe_rule
from drivefine_agent.evaluation.scene_json import Plan, scene_json
from drivefine_agent.evaluation.scene_view import birdseye_view
from drivefine_agent.scoring.explain import (
    Explained,
    Reason,
    explain_extended_comfort,
    explain_v1,
    explain_v2,
)
from drivefine_agent.scoring.extended_comfort import motion_of
from drivefine_agent.scoring.frame_pairs import adjacent_pairs, start_seconds
from drivefine_agent.scoring.types import FloatArray, ScoringScene, ScoringSceneV2

_SAME_SCORE = 1e-6
_EXTENDED_COMFORT = "two_frame_extended_comfort"
_NEIGHBOUR_NOT_SHOWN = "differs too much from the plan of the neighbouring frame, which is not on this page"


def build_report(
    scenes: SplitScenes,
    runs: Mapping[str, Run],
    source: SceneSource,
    main: str | None = None,
    title: str = "DriveFine on NAVSIM",
    footer: str = "",
    num_scenes: int = 500,
    image_width_px: int = 640,
    training: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Report:
    """The report's content.

    Args:
      scenes: of the split that the runs evaluated.
      runs: by the name that the report gives them.
      source: scoring scenes, prepared for the runs' rules.
      main: the run that the others are compared with and whose scenes are shown; None: the first.
      title: of the page.
      footer: last line of the page.
      num_scenes: how many scenes to show at most.
      image_width_px: of the camera images.
      training: rows of training runs (`report_runs.read_metrics`) by name.
      on_progress: called with 1 after each scene.

    Raises:
      DataError: no runs, an unknown main run, runs of different rules or of another split, no valid scene, a
        missing map, or scores that the scenes at hand do not give.
    """
    main = check_runs(runs, main)
    shown = runs[main]
    windows = {window.token: window for window in (*scenes.windows, *scenes.second_stage)}
    table = shown.results.table
    unknown = [token for token in table["token"] if token not in windows]
    if unknown:
        raise DataError(
            f"the run {main!r} has {len(unknown)} scenes that are not in the split {scenes.name!r}, first "
            f"{unknown[0]!r}: name the split that was evaluated"
        )
    scores = _valid_scores(table)
    if not scores:
        raise DataError(
            f"a report needs a valid scene to show, got none in the run {main!r}: see its failures.csv"
        )
    before = None if shown.before is None else _valid_scores(shown.before.table)
    tokens, rule = list(table["token"]), f"All {len(table)} scenes of the evaluation."
    if len(tokens) > num_scenes:
        distance = {token: driven_distance(windows[token]) for token in scores}
        chosen = {choice.token for choice in choose_scenes(scores, before, distance, num_scenes)}
        failed = set(table.loc[~table["valid"], "token"])
        tokens = [token for token in tokens if token in chosen | failed]
        rule = f"Of {len(table)} scenes, {describe_rule(before is not None, num_scenes)}"
        rule += f" The {len(failed)} failed ones are always shown." if failed else ""
    builder = _SceneBuilder(scenes, {main: shown, **runs}, source, image_width_px)
    entries = []
    for token in tokens:
        entries.append(builder.entry(windows[token]))
        on_progress(1)
    if shown.benchmark != "navsim_v1":
        compared = _compared_frames(scenes)
        entries = [builder.with_extended_comfort(entry, compared.get(entry.token)) for entry in entries]
    missing = [entry.data["noImage"] for entry in entries if entry.data and "noImage" in entry.data]
    if missing:
        rule += f" {len(missing)} of them have no camera image here, first: {missing[0]}"
    rules_text = RULE_SETS[BENCHMARKS[shown.benchmark]]
    stages = ", two stages" if shown.benchmark == TWO_STAGE else ""
    traffic = "" if shown.benchmark == "navsim_v1" else f", {shown.traffic.replace('_', '-')} traffic"
    return Report(
        title=title,
        lead=f"Split {scenes.name}, {len(table)} scenes{stages}. {rules_text}{traffic}.",
        benchmark=shown.benchmark,
        names=SHORT_NAMES if shown.benchmark == "navsim_v1" else SHORT_NAMES_V2,
        agents=tuple(
            AgentEntry(run.name, run.results.table, run.note, run.results.groups)
            for run in builder.runs.values()
        ),
        before=None
        if shown.before is None
        else AgentEntry(f"{main}, before refinement", shown.before.table, shown.note, shown.before.groups),
        scenes=tuple(entries),
        plans=tuple(builder.plan_styles()),
        rule=rule,
        training=dict(training or {}),
        footer=footer,
    )


def check_runs(runs: Mapping[str, Run], main: str | None) -> str:
    """Name of the main run.

    Raises:
      DataError: no runs, an unknown main run, or runs of different rules.
    """
    if not runs:
        raise DataError(
            "a report needs at least one run, got none: set runs={name: output folder of tools/evaluate.py}"
        )
    main = next(iter(runs)) if main is None else main
    if main not in runs:
        raise DataError(f"the main run must be one of {sorted(runs)}, got {main!r}: choose one of them")
    rules = {name: run.rules for name, run in runs.items()}
    if len(set(rules.values())) > 1:
        raise DataError(
            f"the runs of a report must be scored by the same rules, got {rules}: make one report for each"
        )
    return main


def driven_distance(window: SceneWindow) -> float:
    """Length of the recorded driver's path in the next 4 s [m]; 0 where nobody drove on (second stage)."""
    if window.num_future_frames < NUM_POSES or window.second_stage is not None:
        return 0.0
    points = np.vstack([np.zeros((1, 2)), future_poses(window, NUM_POSES)[:, :2]])
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())


def _compared_frames(scenes: SplitScenes) -> dict[str, tuple[str, str]]:
    """The later and the earlier frame whose plans extended comfort compares, by token.

    In two stages the comparison counts for both of them, in one stage for the later one.
    """
    if not scenes.groups:
        frames = ((window.token, window.log_name, window.current.timestamp_us) for window in scenes.windows)
        return {token: (token, previous) for token, previous in adjacent_pairs(frames).items()}
    compared = {}
    for group in scenes.groups:
        for now, previous in ((group.token, group.previous_token), *group.pairs):
            compared[now] = compared[previous] = (now, previous)
    return compared


def _valid_scores(table: pd.DataFrame) -> dict[str, float]:
    valid = table[table["valid"] & table["score"].notna()]
    return dict(zip(valid["token"], valid["score"].astype(float), strict=True))


class _SceneBuilder:
    """Makes the entries of single scenes."""

    def __init__(
        self, scenes: SplitScenes, runs: Mapping[str, Run], source: SceneSource, image_width_px: int
    ) -> None:
        self.runs = runs  # the main one first
        self._scenes = scenes
        self._source = source
        self._image_width_px = image_width_px
        self._main = next(iter(runs.values()))
        self._rows = {
            name: {row["token"]: row for row in run.results.table.to_dict("records")}
            for name, run in runs.items()
        }
        self._rows_before = (
            {}
            if self._main.before is None
            else {row["token"]: row for row in self._main.before.table.to_dict("records")}
        )
        self._motions: dict[tuple[str, str], tuple[FloatArray, float]] = {}
        self._ids: dict[str, str] = {}
        colours = iter(OTHER_COLOURS * len(runs))
        self._styles: dict[str, LineStyle] = {}
        for number, (name, run) in enumerate(runs.items()):
            if run is self._main:
                self._ids[name] = FINAL
                self._styles[name] = REFINED_STYLE if self._main.before is not None else GENERATED_STYLE
            elif run.agent_name == HUMAN and HUMAN not in self._ids.values():
                self._ids[name] = HUMAN
                self._styles[name] = HUMAN_STYLE
            else:
                self._ids[name] = f"run{number}"
                self._styles[name] = LineStyle(next(colours), (1.2, 0.5))

    def plan_styles(self) -> list[PlanStyle]:
        """The trajectories of the report, in the order in which tables list them."""
        plans = []
        for name, run in self.runs.items():
            is_main = run is self._main
            label = f"{name}, refined" if is_main and self._main.before is not None else name
            key = self._ids[name]
            plans.append(PlanStyle(key, label, self._styles[name], True, not key.startswith("run")))
            if is_main and self._main.before is not None:
                plans.append(PlanStyle(GENERATED, f"{name}, generated", GENERATED_STYLE, True, True))
        if HUMAN not in self._ids.values():
            plans.append(PlanStyle(HUMAN, "recorded driver", HUMAN_STYLE, False, True))
        return plans

    def entry(self, window: SceneWindow) -> SceneEntry:
        """One scene; where it cannot be shown, the reason."""
        token, frame = window.token, window.current
        scores = {self._ids[name]: rows.get(token) for name, rows in self._rows.items()}
        if self._rows_before:
            scores[GENERATED] = self._rows_before.get(token)
        errors = {
            self._ids[name]: run.errors.get(token, "failed; see failures.jsonl of this run")
            for name, run in self.runs.items()
            if not (self._rows[name].get(token) or {}).get("valid", False)
        }
        reasons: dict[str, tuple[Reason, ...]] = {}
        data: dict[str, Any] | None = None
        try:
            scene = self._source.get(window)
        except DriveFineError as error:
            errors.setdefault(FINAL, f"{type(error).__name__}: {error}")
        else:
            plans = self._plans(window, scene, scores)
            for plan in plans:
                if plan.explained is not None:
                    reasons[plan.id] = plan.explained.reasons
                    motion = motion_of(plan.explained.states)
                    self._motions[plan.id, token] = motion, start_seconds(frame.timestamp_us)
            data = self._data(window, scene, plans)
        return SceneEntry(
            token=token,
            log_name=window.log_name,
            map_name=window.map_name,
            command=DRIVING_COMMANDS[int(np.argmax(frame.driving_command))],
            speed_mps=float(np.hypot(*frame.ego_velocity)),
            stage=self._stage(window),
            scores={key: row if row and row["valid"] else None for key, row in scores.items()},
            errors=errors,
            reasons=reasons,
            data=data,
        )

    def with_extended_comfort(self, entry: SceneEntry, compared: tuple[str, str] | None) -> SceneEntry:
        """The entry with the reasons that need a second frame; all entries must have been made.

        Args:
          entry: of a scene.
          compared: tokens of the later and the earlier frame; None if the scene has no neighbour.

        Raises:
          DataError: the plans give another extended comfort than the result row.
        """
        reasons = dict(entry.reasons)
        for plan, row in entry.scores.items():
            if row is None or not row.get(_EXTENDED_COMFORT, np.nan) < 1.0:
                continue
            motions = [self._motions.get((plan, token)) for token in compared or ()]
            reason: Reason | None = Reason(_EXTENDED_COMFORT, 0.0, _NEIGHBOUR_NOT_SHOWN)
            if len(motions) == 2 and motions[0] is not None and motions[1] is not None:
                (now, time), (before, time_before) = motions[0], motions[1]
                reason = explain_extended_comfort(now, before, time - time_before)
            if reason is None:
                raise DataError(
                    f"the result row of scene {entry.token!r} has no extended comfort, but the plans "
                    f"{plan!r} of {compared} are close: logs or split are not those of the evaluation; "
                    "evaluate again"
                )
            reasons[plan] = (*reasons.get(plan, ()), reason)
        return replace(entry, reasons=reasons)

    def _stage(self, window: SceneWindow) -> int:
        if self._main.benchmark != TWO_STAGE:
            return 0
        return 1 if window.second_stage is None else 2

    def _plans(
        self, window: SceneWindow, scene: ScoringScene, scores: Mapping[str, Mapping[str, Any] | None]
    ) -> list[Plan]:
        """The trajectories of a scene, the one that counts first."""
        token = window.token
        found: list[tuple[str, FloatArray, LineStyle]] = []
        for name, run in self.runs.items():
            poses = run.trajectories.get(FINAL, {}).get(token)
            if poses is not None:
                found.append((self._ids[name], poses, self._styles[name]))
            elif (scores[self._ids[name]] or {}).get("valid", False):
                raise DataError(f"the run {name!r} has no trajectory for scene {token!r}: evaluate again")
        generated = self._main.trajectories.get(GENERATED, {}).get(token)
        if generated is not None and self._rows_before:
            found.append((GENERATED, generated, GENERATED_STYLE))
        plans = []
        for key, poses, style in found:
            row = scores.get(key)
            explained = None if not row or not row["valid"] else self._explain(scene, poses, row, key)
            has_own = self._main.traffic == "reactive" and key in (FINAL, GENERATED)
            plans.append(Plan(key, poses, style, explained, key == FINAL, has_own))
        has_future = window.second_stage is None and window.num_future_frames >= NUM_POSES
        if has_future and not any(plan.id == HUMAN for plan in plans):
            plans.append(Plan(HUMAN, future_poses(window, NUM_POSES), HUMAN_STYLE, None))
        return plans

    def _explain(self, scene: ScoringScene, poses: FloatArray, row: Mapping[str, Any], key: str) -> Explained:
        """Reasons for the scores of a result row.

        Raises:
          DataError: the scene gives other scores than the row.
        """
        if self._main.benchmark == "navsim_v1":
            explained = explain_v1(scene, poses)
        else:
            assert isinstance(scene, ScoringSceneV2)
            explained = explain_v2(
                scene,
                poses,
                traffic=self._main.traffic,  # type: ignore[arg-type]
                human_penalty_filter=self._main.human_penalty_filter,  # type: ignore[arg-type]
            )
        for name, value in explained.scores.items():
            if name in row and abs(value - row[name]) > _SAME_SCORE:
                raise DataError(
                    f"scene {scene.token!r} scores {name} = {value:.6g} for the trajectory {key!r}, its "
                    f"result row says {row[name]:.6g}: logs, maps or scene cache are not those of the "
                    "evaluation; evaluate again"
                )
        return explained

    def _data(self, window: SceneWindow, scene: ScoringScene, plans: Sequence[Plan]) -> dict[str, Any]:
        frame, maps_root = window.current, self._scenes.maps_root
        map_ = None if maps_root is None else load_map(maps_root, window.map_name)
        red = {str(connector) for connector, is_red in frame.traffic_lights if is_red}
        camera = frame.cameras.get(FRONT_CAMERA)
        image, error = None, None
        try:
            image = self._image(window)
        except DataError as missing:  # told in its place, and counted on the page
            error = str(missing)
        data = scene_json(
            scene,
            birdseye_view(scene, map_, red),
            plans,
            image,
            camera,
            ground_height(frame.annotations),
            self._image_width_px,
        )
        return data if error is None else {**data, "noImage": error}

    def _image(self, window: SceneWindow) -> NDArray[np.uint8]:
        """The front camera's image now; DataError where it is missing."""
        if FRONT_CAMERA not in window.current.cameras:
            raise DataError(
                f"scene {window.token!r} has no {FRONT_CAMERA} now: {window.log_path}; fetch the log again"
            )
        folder = self._scenes.sensor_path
        if window.second_stage is not None:
            if self._scenes.synthetic_sensor_path is None:
                raise DataError("second-stage images need a folder, got none: set synthetic_sensor_path")
            folder = self._scenes.synthetic_sensor_path
        return read_image(folder, window.current.cameras[FRONT_CAMERA].data_path)
