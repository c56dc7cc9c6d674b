"""`submission.pkl`, the file that NAVSIM's leaderboards take: written and read without NAVSIM.

It is a pickle of one dict: five texts about the team, and trajectories by scene token, as objects of NAVSIM's
class `Trajectory`, each with nuPlan's `TrajectorySampling`. NAVSIM 1 (navtest) has one key `predictions`, a
list with one dict per training seed; NAVSIM 2 (two-stage splits) has `first_stage_predictions` and
`second_stage_predictions`, lists of one dict each.

Source: NAVSIM v1.1 and v2.2, navsim/planning/script/run_create_submission_pickle.py.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.constants import HORIZON_S, NUM_POSE_FIELDS, NUM_POSES, POSE_INTERVAL_S
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.pickle_names import PROTOCOL, numpy_1_name, rename_globals
from drivefine_agent.data.safe_pickle import NUMPY_AND_BUILTINS, PickledObject, load_pickle
from drivefine_agent.errors import DataError, UnsafePickleError

_AGAIN = "write it again (tools/create_submission.py, or NAVSIM's own script)"

SUBMISSION_NAME = "submission.pkl"
"""The leaderboards accept no other file name."""

PREDICTIONS = "predictions"
FIRST_STAGE = "first_stage_predictions"
SECOND_STAGE = "second_stage_predictions"

METADATA_KEYS = {
    "team_name": "team_name",
    "authors": "authors",
    "email": "email",
    "institution": "institution",
    "country": "country / region",
}
"""Field of `TeamInfo` -> key in the file."""

Predictions = Mapping[str, NDArray[np.floating[Any]]]
"""Scene token -> (8, 3) x, y [m], heading [rad] at 0.5 ... 4.0 s in the ego frame of now."""


@dataclass(frozen=True)
class TeamInfo:
    """Who submits; all five must be said."""

    team_name: str
    """Shown on the board; the 2024 board takes a link in it: `<a href=LINK>Method</a>`."""
    authors: str
    email: str
    institution: str
    country: str
    """Country or region."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if type(value) is not str or not value.strip():
                raise DataError(
                    f"{item.name!r} of a submission must be a text and not empty, got {value!r}; set it"
                )


@dataclass(frozen=True)
class Submission:
    """What a submission says: of NAVSIM 1 with `predictions`, of NAVSIM 2 with both stages."""

    team: TeamInfo
    predictions: tuple[Predictions, ...] = ()
    """NAVSIM 1: one per training seed."""
    first_stage: Predictions = field(default_factory=dict)
    """NAVSIM 2: samples cut from logs."""
    second_stage: Predictions = field(default_factory=dict)
    """NAVSIM 2: synthetic samples."""

    def __post_init__(self) -> None:
        if bool(self.predictions) == bool(self.first_stage or self.second_stage):
            raise DataError(
                "a Submission has either predictions (NAVSIM 1) or first_stage and second_stage (NAVSIM "
                f"2), got {'both' if self.predictions else 'neither'}: give one of the two"
            )

    @property
    def is_two_stage(self) -> bool:
        """Whether it is one of NAVSIM 2."""
        return not self.predictions


class PickledSampling(PickledObject):
    """Stands for nuPlan's `TrajectorySampling` in a pickle; `state` is what the file sets, unchecked."""

    state: dict[str, Any] = {}  # noqa: RUF012 - see PickledTrajectory

    def __init__(self, **state: Any) -> None:
        self.state = state

    def __getstate__(self) -> dict[str, Any]:
        return self.state

    def __setstate__(self, state: Any) -> None:
        self.state = _checked_state(state, "TrajectorySampling")

    def pickled_fields(self) -> dict[str, Any]:
        """See `PickledObject`."""
        return self.state


class PickledTrajectory(PickledObject):
    """Stands for NAVSIM's `Trajectory` in a pickle; `state` is what the file sets, unchecked."""

    state: dict[str, Any] = {}  # noqa: RUF012 - of objects that a file makes without ever setting their state

    def __init__(self, **state: Any) -> None:
        self.state = state

    def __getstate__(self) -> dict[str, Any]:
        return self.state

    def __setstate__(self, state: Any) -> None:
        self.state = _checked_state(state, "Trajectory")

    def pickled_fields(self) -> dict[str, Any]:
        """See `PickledObject`."""
        return self.state


def _checked_state(state: Any, name: str) -> dict[str, Any]:
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UnsafePickleError(f"the state of a {name} in a pickle must be its fields by name; {_AGAIN}")
    return dict(state)


OFFICIAL_NAMES = {
    PickledTrajectory: ("navsim.common.dataclasses", "Trajectory"),
    PickledSampling: ("nuplan.planning.simulation.trajectory.trajectory_sampling", "TrajectorySampling"),
}
"""What stands for a class here -> (module, name) of the class in the file."""

_BY_OWN_NAME = {(item.__module__, item.__qualname__): name for item, name in OFFICIAL_NAMES.items()}


def write_submission(path: str | Path, submission: Submission) -> None:
    """Write a submission that NAVSIM reads as its own, on numpy 1.x and 2.x; equal content gives equal bytes.

    The file is complete or absent. It is not compared with a split; `evaluation.submission_check` does that.

    Raises:
      DataError: a token is no text, poses are not (8, 3) or not finite, or the place cannot be written.
    """
    # A pickle writes the same text object once only: equal texts become one object, so the bytes are fixed.
    content: dict[str, Any] = {
        key: sys.intern(getattr(submission.team, name)) for name, key in METADATA_KEYS.items()
    }
    sampling = PickledSampling(num_poses=NUM_POSES, time_horizon=HORIZON_S, interval_length=POSE_INTERVAL_S)
    if submission.is_two_stage:
        content[FIRST_STAGE] = [_trajectories(submission.first_stage, sampling)]
        content[SECOND_STAGE] = [_trajectories(submission.second_stage, sampling)]
    else:
        content[PREDICTIONS] = [_trajectories(seed, sampling) for seed in submission.predictions]
    write_bytes(path, rename_globals(pickle.dumps(content, protocol=PROTOCOL), _official_name))


def _official_name(module: str, name: str) -> tuple[str, str]:
    return _BY_OWN_NAME.get((module, name)) or numpy_1_name(module, name)


def _trajectories(predictions: Predictions, sampling: PickledSampling) -> dict[str, PickledTrajectory]:
    trajectories = {}
    for token, poses in predictions.items():
        if type(token) is not str or not token:
            raise DataError(f"the tokens of a submission must be texts, got {token!r}; give NAVSIM's tokens")
        array = np.array(poses, dtype=np.float32, order="C", copy=True)
        if array.shape != (NUM_POSES, NUM_POSE_FIELDS) or not np.isfinite(array).all():
            raise DataError(
                f"a submission needs finite poses of shape {(NUM_POSES, NUM_POSE_FIELDS)}, got shape "
                f"{array.shape} with {int((~np.isfinite(array)).sum())} non-finite numbers for {token!r}"
                "; correct the planner"
            )
        trajectories[sys.intern(token)] = PickledTrajectory(poses=array, trajectory_sampling=sampling)
    return trajectories


def read_contents(path: str | Path) -> Any:
    """What a submission file holds, whoever wrote it, unchecked; nothing in the file is executed.

    Returns:
      As a rule a dict. In it, `PickledTrajectory` and `PickledSampling` stand for NAVSIM's classes.

    Raises:
      UnsafePickleError: the file names any class or function besides these two and numpy's arrays.
      DataError: missing, truncated, or no pickle.
    """
    allow = {**NUMPY_AND_BUILTINS, **{name: item for item, name in OFFICIAL_NAMES.items()}}
    return load_pickle(path, allow)


def read_submission(path: str | Path) -> Submission:
    """A well-formed submission, ours or of NAVSIM's own scripts. Poses keep their precision.

    Raises:
      UnsafePickleError: see `read_contents`.
      DataError: the file is damaged or malformed; `evaluation.submission_check` lists everything that is.
    """
    content = read_contents(path)
    if not isinstance(content, dict):
        raise DataError(f"a submission must be a dict, got {type(content).__name__}: {path}; {_AGAIN}")
    is_two_stage = FIRST_STAGE in content or SECOND_STAGE in content
    wanted = {*METADATA_KEYS.values(), *((FIRST_STAGE, SECOND_STAGE) if is_two_stage else (PREDICTIONS,))}
    if content.keys() != wanted:
        raise DataError(
            f"a submission must have the keys {sorted(wanted)}, got {sorted(map(str, content))}: {path}"
            f"; {_AGAIN}"
        )
    try:
        team = TeamInfo(**{name: content[key] for name, key in METADATA_KEYS.items()})
        return _submission(team, content, path, is_two_stage)
    except UnsafePickleError:
        raise
    except DataError as error:
        raise error if str(path) in str(error) else DataError(f"{error}: {path}") from error


def _submission(
    team: TeamInfo, content: Mapping[str, Any], path: str | Path, is_two_stage: bool
) -> Submission:
    if not is_two_stage:
        return Submission(team, tuple(_read_dicts(content, PREDICTIONS, path)))
    stages = [_read_dicts(content, key, path) for key in (FIRST_STAGE, SECOND_STAGE)]
    if [len(dicts) for dicts in stages] != [1, 1]:
        raise DataError(
            f"a two-stage submission must have one dict per stage, got {[len(dicts) for dicts in stages]}: "
            f"{path}"
            f"; {_AGAIN}"
        )
    return Submission(team, first_stage=stages[0][0], second_stage=stages[1][0])


def _read_dicts(content: Mapping[str, Any], key: str, path: str | Path) -> list[Predictions]:
    dicts = content[key]
    if not isinstance(dicts, list) or not all(isinstance(item, dict) for item in dicts):
        raise DataError(f"{key!r} of a submission must be a list of dicts: {path}; {_AGAIN}")
    return [{token: _read_poses(token, value, path) for token, value in item.items()} for item in dicts]


def _read_poses(token: Any, value: Any, path: str | Path) -> NDArray[np.floating[Any]]:
    reason = trajectory_problem(value) if isinstance(token, str) else "its token is no text"
    if reason is not None:
        raise DataError(f"not a trajectory of 8 poses in 4 s: {reason}, token {token!r}: {path}; {_AGAIN}")
    poses: NDArray[np.floating[Any]] = value.state["poses"]
    return poses


def trajectory_problem(value: Any) -> str | None:
    """Why a value in a submission is no finite trajectory of 8 poses, 0.5 s apart; None if it is one.

    The text says what is wrong without naming the token, so that equal faults have equal texts.
    """
    if not isinstance(value, PickledTrajectory):
        return f"a prediction must be a Trajectory of navsim, got {type(value).__name__}"
    if set(value.state) != {"poses", "trajectory_sampling"}:
        return f"a Trajectory must have the fields poses and trajectory_sampling, got {sorted(value.state)}"
    return _poses_problem(value.state["poses"]) or _sampling_problem(value.state["trajectory_sampling"])


def _poses_problem(poses: Any) -> str | None:
    if not isinstance(poses, np.ndarray):
        return f"poses must be a numpy array, got {type(poses).__name__}"
    if poses.shape != (NUM_POSES, NUM_POSE_FIELDS):
        return f"poses must have shape {(NUM_POSES, NUM_POSE_FIELDS)}, got {poses.shape}"
    if poses.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        return f"poses must be float32 or float64, got {poses.dtype}"
    if not np.isfinite(poses).all():
        return "poses must be finite, got NaN or infinity"
    return None


def _sampling_problem(sampling: Any) -> str | None:
    if not isinstance(sampling, PickledSampling):
        return f"trajectory_sampling must be a TrajectorySampling of nuPlan, got {type(sampling).__name__}"
    # nuPlan derives the number of poses from the other two where it is not given.
    wanted = {"num_poses": NUM_POSES, "time_horizon": HORIZON_S, "interval_length": POSE_INTERVAL_S}
    got = {name: sampling.state.get(name) for name in wanted}
    if got["num_poses"] is None:
        got["num_poses"] = NUM_POSES
    for name, value in got.items():
        if not isinstance(value, int | float | np.integer | np.floating) or value != wanted[name]:
            shown = ", ".join(f"{name}={sampling.state.get(name)!r}" for name in wanted)
            return f"trajectories must have 8 poses, 0.5 s apart, up to 4.0 s, got {shown}"
    return None
