"""What a report reads: output folders of tools/evaluate.py, and the log of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from drivefine_agent.data.json_text import read_json_lines, read_json_object
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.job import (
    BEFORE_NAME,
    FAILURES_NAME,
    PREDICTIONS_NAME,
    RESULTS_NAME,
    SUMMARY_NAME,
    TWO_STAGE,
)
from drivefine_agent.evaluation.outcomes import read_predictions
from drivefine_agent.evaluation.results_csv import read_csv
from drivefine_agent.evaluation.results_csv_v2 import (
    groups_path,
    read_groups,
    read_one_stage,
    read_two_stage,
    rules_of_csv,
)
from drivefine_agent.scoring.types import FloatArray

METRICS_FILE = "metrics.jsonl"
_NOTES = {
    "human": "privileged: the recorded future",
    "pdm_closed": "privileged: map and road users, NAVSIM's reference",
    "ego_status_mlp": "blind: speed, acceleration, command",
    "constant_velocity": "straight on at the present speed",
}


@dataclass(frozen=True)
class Results:
    """The results of one trajectory per scene."""

    table: pd.DataFrame
    """One row per scene; with two stages, one per sample, and the column `stage`."""
    groups: pd.DataFrame | None = None
    """Two stages: one row per mapping group, which alone has a combined score."""


@dataclass(frozen=True)
class Run:
    """What tools/evaluate.py left in a folder."""

    name: str
    agent_name: str
    benchmark: str
    """navsim_v1, navsim_v2 or navhard_two_stage."""
    traffic: str
    human_penalty_filter: str
    """Of NAVSIM 2; empty for 1.1."""
    results: Results
    before: Results | None
    """Before refinement, of planners that refine."""
    trajectories: dict[str, dict[str, FloatArray]]
    """(8, 3) poses by trajectory id, then scene token."""
    errors: dict[str, str]
    """Why a scene failed, by token."""
    note: str = ""
    """What a reader should know about the agent."""

    @property
    def rules(self) -> tuple[str, str, str]:
        """By what it was scored; only runs of the same rules can be compared."""
        return self.benchmark, self.traffic, self.human_penalty_filter


def read_run(name: str, folder: Path) -> Run:
    """The results in an output folder of tools/evaluate.py.

    Raises:
      DataError: if a file is missing or damaged.
    """
    summary_path = folder / SUMMARY_NAME
    try:
        summary = read_json_object(summary_path)
        agent_name, configuration = str(summary["agent_name"]), summary["configuration"]
        agent = configuration["agent"]
        is_blank = bool(configuration.get("blank_image", False) or agent.get("blank_image", False))
        rules = str(summary["benchmark"]), str(summary["traffic"]), str(summary["human_penalty_filter"] or "")
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"a run must be an output folder of tools/evaluate.py, got {folder} ({summary_path}: {error}); "
            "choose such a folder"
        ) from error
    before = folder / BEFORE_NAME
    return Run(
        name,
        agent_name,
        *rules,
        results=_read_results(folder / RESULTS_NAME),
        before=_read_results(before) if before.exists() else None,
        trajectories=read_predictions(folder / PREDICTIONS_NAME),
        errors=_read_errors(folder / FAILURES_NAME),
        note=_note(agent_name, is_blank, bool(summary.get("privileged", False))),
    )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a training run's metrics.jsonl: group, step, numbers by name.

    Raises:
      DataError: the file is missing, or a line is no such row.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        raise DataError(
            f"a training run's folder must hold {METRICS_FILE}, got {folder}: name the output_dir of "
            "tools/train_sft.py or of a script of rl/"
        )
    rows = []
    for number, row in read_json_lines(path):
        try:
            rows.append({**row, "group": str(row["group"]), "step": int(row["step"])})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"line {number} of {path} is no row of training metrics ({error}): remove it"
            ) from error
    return rows


def _note(agent_name: str, is_blank: bool, is_privileged: bool) -> str:
    note = "grey image instead of the camera's" if is_blank else _NOTES.get(agent_name, "")
    if not is_privileged or "privileged" in note:
        return note
    mark = "privileged: sees what no planner can know; an upper bound, not a planner"
    return f"{mark}; {note}" if is_blank else mark


def _read_results(path: Path) -> Results:
    benchmark = rules_of_csv(path)
    if benchmark == TWO_STAGE:
        return Results(read_two_stage(path)[0], read_groups(groups_path(path)))
    return Results(read_csv(path) if benchmark == "navsim_v1" else read_one_stage(path))


def _read_errors(path: Path) -> dict[str, str]:
    """Reasons of failure by token; of several trajectories of a scene, the first reason."""
    errors: dict[str, str] = {}
    if path.exists():
        for number, row in read_json_lines(path):
            if not {"token", "error"} <= row.keys():
                raise DataError(
                    f"a failure has a token and an error, got {sorted(row)[:5]}: {path}, line {number}; "
                    "evaluate again"
                )
            errors.setdefault(str(row["token"]), str(row["error"]))
    return errors
