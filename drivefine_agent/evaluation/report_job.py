"""From finished evaluations to the report: which scenes, their pictures and their numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from drivefine_agent.constants import DRIVING_COMMANDS, NUM_POSES
from drivefine_agent.data.maps import Map, load_map
from drivefine_agent.data.scenes import future_poses
from drivefine_agent.data.sensors import read_image
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.birdseye import draw_birdseye
from drivefine_agent.evaluation.camera_view import draw_paths, encode_jpeg, ground_height
from drivefine_agent.evaluation.dataset import SplitScenes
from drivefine_agent.evaluation.job import (
    BEFORE_NAME,
    FRONT_CAMERA,
    PREDICTIONS_NAME,
    RESULTS_NAME,
    SUMMARY_NAME,
)
from drivefine_agent.evaluation.outcomes import FINAL, GENERATED, read_predictions
from drivefine_agent.evaluation.paths import GENERATED_COLOUR, HUMAN_COLOUR, REFINED_COLOUR, DrawnPath
from drivefine_agent.evaluation.report import AgentEntry, LegendPath, Report, SceneCard, TrajectoryScores
from drivefine_agent.evaluation.results_csv import METRICS_V1, read_csv
from drivefine_agent.evaluation.run import SceneSource
from drivefine_agent.evaluation.scene_choice import choose_scenes, describe_rule
from drivefine_agent.evaluation.scene_view import birdseye_view
from drivefine_agent.scoring.types import FloatArray

BEFORE_LABEL = "before refinement"
HUMAN_LABEL = "recorded driver"
_NOTES = {
    "human": "privileged: the recorded future",
    "pdm_closed": "privileged: map and road users, NAVSIM's reference",
    "ego_status_mlp": "blind: speed, acceleration, command",
    "constant_velocity": "straight on at the present speed",
}


@dataclass(frozen=True)
class Run:
    """What tools/evaluate.py left in a folder."""

    name: str
    agent_name: str
    table: pd.DataFrame
    before: pd.DataFrame | None
    trajectories: dict[str, dict[str, FloatArray]]
    """(8, 3) poses by trajectory id, then scene token."""
    is_blank: bool
    """The camera image was blanked."""

    @property
    def note(self) -> str:
        """What a reader should know about the agent."""
        return "grey image instead of the camera's" if self.is_blank else _NOTES.get(self.agent_name, "")


def read_run(name: str, folder: Path) -> Run:
    """The results in an output folder of tools/evaluate.py.

    Raises:
      DataError: if a file is missing or damaged.
    """
    summary_path = folder / SUMMARY_NAME
    try:
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
        agent_name, configuration = str(summary["agent_name"]), summary["configuration"]
        is_blank = bool(configuration["blank_image"] or configuration["agent"].get("blank_image", False))
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder} is no output folder of tools/evaluate.py ({summary_path}: {error})"
        ) from error
    before = folder / BEFORE_NAME
    return Run(
        name=name,
        agent_name=agent_name,
        table=read_csv(folder / RESULTS_NAME),
        before=read_csv(before) if before.exists() else None,
        trajectories=read_predictions(folder / PREDICTIONS_NAME),
        is_blank=is_blank,
    )


def build_report(
    scenes: SplitScenes,
    runs: Mapping[str, Run],
    source: SceneSource,
    main: str | None = None,
    title: str = "DriveFine on NAVSIM",
    footer: str = "",
    num_scenes: int = 12,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Report:
    """The report's content.

    Args:
      scenes: of the split that the runs evaluated.
      runs: by the name that the report gives them.
      source: scoring scenes, for the pictures from above.
      main: the run that the others are compared with and whose scenes are shown; None: the first.
      title: of the page.
      footer: last line of the page.
      num_scenes: how many scenes to show.
      on_progress: called with 1 after each scene.

    Raises:
      DataError: no runs, an unknown main run, runs of another split, no valid scene, a missing image or map.
    """
    if not runs:
        raise DataError("a report needs at least one run (runs={name: output folder of tools/evaluate.py})")
    main = next(iter(runs)) if main is None else main
    if main not in runs:
        raise DataError(f"the main run must be one of {sorted(runs)}, got {main!r}")
    shown = runs[main]
    windows = {window.token: window for window in scenes.windows}
    unknown = [token for token in shown.table["token"] if token not in windows]
    if unknown:
        raise DataError(
            f"the run {main!r} has {len(unknown)} scenes that are not in the split {scenes.name!r}, first "
            f"{unknown[0]!r}: name the split that was evaluated"
        )
    scores = _valid_scores(shown.table)
    if not scores:
        raise DataError(f"the run {main!r} has no valid scene to show")
    before = None if shown.before is None else _valid_scores(shown.before)
    distance = {token: driven_distance(windows[token]) for token in scores}
    cards = []
    for choice in choose_scenes(scores, before, distance, num_scenes):
        cards.append(_card(windows[choice.token], choice.reason, scenes, runs, main, source))
        on_progress(1)
    others = [run for name, run in runs.items() if name != main]
    return Report(
        title=title,
        lead=f"Split {scenes.name}, {len(shown.table)} scenes, scored by the rules of NAVSIM 1.1 (PDMS).",
        agents=tuple(AgentEntry(run.name, run.table, run.note) for run in (shown, *others)),
        before=None if shown.before is None else AgentEntry(f"{main}, {BEFORE_LABEL}", shown.before),
        cards=tuple(cards),
        legend=_legend(shown),
        rule=describe_rule(before is not None, num_scenes),
        footer=footer,
    )


def driven_distance(window: SceneWindow) -> float:
    """Length of the recorded driver's path in the next 4 s [m]."""
    points = np.vstack([np.zeros((1, 2)), future_poses(window, NUM_POSES)[:, :2]])
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())


def _valid_scores(table: pd.DataFrame) -> dict[str, float]:
    valid = table[table["valid"]]
    return dict(zip(valid["token"], valid["score"].astype(float), strict=True))


def _paths(token: str, human: FloatArray, shown: Run) -> list[DrawnPath]:
    """Human, generated and final trajectory, as far as there are any."""
    paths = [DrawnPath(HUMAN_LABEL, HUMAN_COLOUR, human, is_dashed=True)]
    generated = shown.trajectories.get(GENERATED, {})
    if token in generated:
        paths.append(DrawnPath(BEFORE_LABEL, GENERATED_COLOUR, generated[token]))
    final = shown.trajectories.get(FINAL, {})
    if token not in final:
        raise DataError(f"the run {shown.name!r} has no trajectory for scene {token!r}: evaluate again")
    paths.append(DrawnPath(shown.name, REFINED_COLOUR, final[token], is_main=True))
    return paths


def _legend(shown: Run) -> tuple[LegendPath, ...]:
    refined = f"{shown.name}, refined" if shown.before is not None else shown.name
    paths = [LegendPath(refined, REFINED_COLOUR)]
    if shown.before is not None:
        paths.append(LegendPath(f"{shown.name}, {BEFORE_LABEL}", GENERATED_COLOUR))
    return (*paths, LegendPath(HUMAN_LABEL, HUMAN_COLOUR, is_dashed=True))


def _card(
    window: SceneWindow,
    reason: str,
    scenes: SplitScenes,
    runs: Mapping[str, Run],
    main: str,
    source: SceneSource,
) -> SceneCard:
    frame = window.current
    scene = source.get(window)
    map_: Map | None = None
    if scenes.maps_root is not None:
        map_ = load_map(scenes.maps_root, window.map_name)
    red = {str(connector) for connector, is_red in frame.traffic_lights if is_red}
    paths = _paths(window.token, future_poses(window, NUM_POSES), runs[main])
    if FRONT_CAMERA not in frame.cameras:
        raise DataError(f"scene {window.token!r} has no {FRONT_CAMERA} now: {window.log_path}")
    camera = frame.cameras[FRONT_CAMERA]
    image = read_image(scenes.sensor_path, camera.data_path)
    return SceneCard(
        token=window.token,
        reason=reason,
        facts=_facts(window),
        camera_jpeg=encode_jpeg(draw_paths(image, camera, paths, ground_height(frame.annotations))),
        birdseye_png=draw_birdseye(birdseye_view(scene, map_, red), paths),
        rows=_score_rows(window.token, runs, main),
    )


def _facts(window: SceneWindow) -> str:
    frame = window.current
    command = DRIVING_COMMANDS[int(np.argmax(frame.driving_command))]
    speed = float(np.hypot(*frame.ego_velocity))
    return f"command {command} · {speed:.1f} m/s now · {window.map_name} · {window.log_name}"


def _score_rows(token: str, runs: Mapping[str, Run], main: str) -> tuple[TrajectoryScores, ...]:
    shown = runs[main]
    rows = [_scores_of(token, shown.name, REFINED_COLOUR, shown.table)]
    if shown.before is not None:
        rows.append(_scores_of(token, BEFORE_LABEL, GENERATED_COLOUR, shown.before))
    for name, run in runs.items():
        if name != main:
            colour = HUMAN_COLOUR if run.agent_name == "human" else None
            rows.append(_scores_of(token, name, colour, run.table))
    return tuple(rows)


def _scores_of(token: str, label: str, colour: str | None, table: pd.DataFrame) -> TrajectoryScores:
    row = table[table["token"] == token]
    if row.empty or not bool(row["valid"].iloc[0]):
        return TrajectoryScores(label, colour, None, "failed, see failures.jsonl of this run")
    return TrajectoryScores(label, colour, {name: float(row[name].iloc[0]) for name in METRICS_V1})
