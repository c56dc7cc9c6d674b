"""Everything that is wrong with a submission, before a leaderboard says no more than "failed".

The leaderboards show no reason, and NAVSIM's own scripts leave failed samples out in silence. Here a file is
compared with its split, and every fault has its own sentence.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from drivefine_agent.constants import POSE_INTERVAL_S
from drivefine_agent.data.pickle_names import named_modules
from drivefine_agent.data.splits import Split
from drivefine_agent.data.submission import (
    FIRST_STAGE,
    METADATA_KEYS,
    PREDICTIONS,
    SECOND_STAGE,
    SUBMISSION_NAME,
    PickledTrajectory,
    read_contents,
    trajectory_problem,
)
from drivefine_agent.errors import DataError, UnsafePickleError
from drivefine_agent.evaluation.dataset import DatasetKeys, SplitScenes, load_split_of, load_split_scenes

MAX_SPEED_MPS = 50.0
"""Faster than this between two poses is doubted (180 km/h)."""

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")
_NUM_LISTED = 5


@dataclass(frozen=True)
class WantedTokens:
    """The samples that a submission must answer."""

    split: str
    first_stage: tuple[str, ...]
    """All samples of a one-stage split."""
    second_stage: tuple[str, ...] | None = None
    """None for one-stage splits (NAVSIM 1)."""

    def stage_of(self, key: str) -> tuple[str, ...]:
        """What belongs under a key of the file."""
        return (self.second_stage or ()) if key == SECOND_STAGE else self.first_stage


def wanted_tokens(split: Split) -> WantedTokens:
    """The samples that a split lists.

    Raises:
      DataError: the split lists no tokens (then they have to be read from its logs), or one token twice.
    """
    first = split.scene_filter.tokens
    if first is None:
        raise DataError(
            f"the split {split.name!r} lists no tokens: its samples must be cut from its logs: set "
            "navsim_log_path"
        )
    second = split.scene_filter.reactive_synthetic_initial_tokens
    if second is None and split.reactive_all_mapping is not None:
        second = tuple(
            token for group in split.reactive_all_mapping for pair in group.pairs for token in pair
        )
    tokens = [*first, *(second or ())]
    twice = [token for token, count in Counter(tokens).items() if count > 1]
    if twice:
        raise DataError(
            f"the tokens of a split must differ, got {_listed(twice)} twice in {split.name!r}; correct its "
            "file"
        )
    return WantedTokens(split.name, first, second)


def tokens_of_split(keys: DatasetKeys, scenes: SplitScenes | None = None) -> WantedTokens:
    """The samples of a split: as it lists them, or, if it lists none, as its logs give them.

    Args:
      keys: the split and where it lies.
      scenes: what was loaded of it, if it was; spares loading it again.

    Raises:
      DataError: unknown split, or its logs are needed and missing.
    """
    split = load_split_of(keys)
    if split.scene_filter.tokens is None:
        scenes = load_split_scenes(keys) if scenes is None else scenes
        second = tuple(window.token for window in scenes.second_stage) or None
        return WantedTokens(scenes.name, tuple(window.token for window in scenes.windows), second)
    return wanted_tokens(split)


@dataclass(frozen=True)
class SubmissionCheck:
    """What was found."""

    problems: list[str] = field(default_factory=list)
    """Each would make a leaderboard refuse or misread the file."""
    doubts: list[str] = field(default_factory=list)
    """Allowed, but hardly meant."""
    counts: dict[str, list[int]] = field(default_factory=dict)
    """Trajectories per dict, by key of the file."""

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_submission(path: str | Path, wanted: WantedTokens) -> SubmissionCheck:
    """Compare a submission file with its split. Never raises for what the file contains."""
    path = Path(path)
    check = SubmissionCheck()
    if path.name != SUBMISSION_NAME:
        check.problems.append(f"the file must be called {SUBMISSION_NAME!r}, got {path.name!r}")
    try:
        content = read_contents(path)
    except UnsafePickleError as error:
        check.problems.append(f"the file names something besides trajectories and texts: {error}")
        return check
    except DataError as error:
        check.problems.append(f"the file cannot be read: {error}")
        return check
    if any(module.startswith("numpy._core") for module in named_modules(path.read_bytes())):
        check.problems.append(
            "the file names 'numpy._core' (numpy 2), which NAVSIM's numpy 1.23 cannot load: "
            "write it again with tools/create_submission.py predictions=FILE"
        )
    if not isinstance(content, dict):
        check.problems.append(f"a submission must be a dict, got {type(content).__name__}")
        return check
    _check_metadata(content, check)
    keys = (PREDICTIONS,) if wanted.second_stage is None else (FIRST_STAGE, SECOND_STAGE)
    _check_keys(content, keys, wanted, check)
    for key in keys:
        if key in content:
            _check_dicts(content[key], key, wanted, check)
    return check


def format_check(check: SubmissionCheck) -> str:
    """For people: counts, then every problem and doubt."""
    lines = [
        f"{key}: {' + '.join(map(str, counts)) or 0} trajectories" for key, counts in check.counts.items()
    ]
    lines += [f"problem: {problem}" for problem in check.problems]
    lines += [f"doubt: {doubt}" for doubt in check.doubts]
    lines.append("the submission is complete" if check.is_good else f"{len(check.problems)} problems")
    return "\n".join(lines)


def _check_metadata(content: Mapping[Any, Any], check: SubmissionCheck) -> None:
    for key in METADATA_KEYS.values():
        if key not in content:
            check.problems.append(f"the text {key!r} is missing")
        elif type(content[key]) is not str:
            check.problems.append(f"{key!r} must be a text (str), got {type(content[key]).__name__}")
        elif not content[key].strip():
            check.problems.append(f"the text {key!r} is empty")
        elif key == "email" and not _EMAIL.fullmatch(content[key].strip()):
            check.problems.append(f"'email' must be an address like name@host.org, got {content[key]!r}")


def _check_keys(
    content: Mapping[Any, Any], keys: Sequence[str], wanted: WantedTokens, check: SubmissionCheck
) -> None:
    other = [key for key in (PREDICTIONS, FIRST_STAGE, SECOND_STAGE) if key in content and key not in keys]
    kind = "one-stage split (NAVSIM 1)" if wanted.second_stage is None else "two-stage split (NAVSIM 2)"
    if other:
        check.problems.append(
            f"{wanted.split!r} is a {kind}, whose submissions have {' and '.join(map(repr, keys))}, "
            f"got {' and '.join(map(repr, other))}"
        )
    missing = [key for key in keys if key not in content]
    if missing and not other:
        check.problems.append(f"the predictions {' and '.join(map(repr, missing))} are missing")
    known = {*METADATA_KEYS.values(), PREDICTIONS, FIRST_STAGE, SECOND_STAGE}
    unknown = [key for key in content if key not in known]
    if unknown:
        check.problems.append(f"a submission has no key {_listed(unknown)}")


def _check_dicts(dicts: Any, key: str, wanted: WantedTokens, check: SubmissionCheck) -> None:
    if not isinstance(dicts, list):
        check.problems.append(f"{key!r} must be a list, got {type(dicts).__name__}")
        return
    if key == PREDICTIONS and not dicts:
        check.problems.append(f"{key!r} must hold one dict per seed, got an empty list")
    if key != PREDICTIONS and len(dicts) != 1:
        check.problems.append(
            f"{key!r} must hold exactly one dict, got {len(dicts)}: NAVSIM 2 takes no seeds"
        )
    counts = check.counts.setdefault(key, [])
    for index, predictions in enumerate(dicts):
        where = key if len(dicts) == 1 else f"{key}[{index}]"
        if not isinstance(predictions, dict):
            check.problems.append(
                f"{where} must be a dict from token to trajectory, got {type(predictions).__name__}"
            )
            continue
        counts.append(len(predictions))
        _check_tokens(predictions, key, where, wanted, check)
        _check_trajectories(predictions, where, check)
    if key == PREDICTIONS:
        _doubt_seeds([item for item in dicts if isinstance(item, dict)], check)


def _doubt_seeds(dicts: Sequence[Mapping[Any, Any]], check: SubmissionCheck) -> None:
    """Seeds that drive alike to the last bit are one seed, handed in several times."""
    first: dict[bytes, int] = {}
    for index, predictions in enumerate(dicts):
        digest = hashlib.sha256()
        for token in sorted(predictions, key=str):
            value = predictions[token]
            if trajectory_problem(value) is None:
                digest.update(
                    str(token).encode("utf-8", "surrogatepass")
                    + np.asarray(value.state["poses"], np.float64).tobytes()
                )
        same = first.setdefault(digest.digest(), index)
        if same != index:
            check.doubts.append(f"the seeds {PREDICTIONS}[{same}] and [{index}] have equal trajectories")


def _check_tokens(
    predictions: Mapping[Any, Any], key: str, where: str, wanted: WantedTokens, check: SubmissionCheck
) -> None:
    here = wanted.stage_of(key)
    elsewhere = (
        set() if key == PREDICTIONS else {*wanted.first_stage, *(wanted.second_stage or ())} - set(here)
    )
    wanted_here = set(here)
    foreign = [token for token in predictions if token not in wanted_here]
    no_texts = [token for token in foreign if type(token) is not str]
    misplaced = [token for token in foreign if token in elsewhere]
    extra = [token for token in foreign if type(token) is str and token not in elsewhere]
    missing = [token for token in here if token not in predictions]
    if no_texts:
        check.problems.append(f"{where}: tokens must be texts, got {_listed(no_texts)}")
    if misplaced:
        other = SECOND_STAGE if key == FIRST_STAGE else FIRST_STAGE
        check.problems.append(
            f"{where}: {len(misplaced)} tokens belong to the other stage ({other}): {_listed(misplaced)}"
        )
    if extra:
        check.problems.append(
            f"{where}: {len(extra)} tokens are not in the split {wanted.split!r}: {_listed(extra)}"
        )
    if missing:
        check.problems.append(
            f"{where}: {len(missing)} of the {len(here)} tokens of {wanted.split!r} are missing: "
            f"{_listed(missing)}"
        )


def _check_trajectories(predictions: Mapping[Any, Any], where: str, check: SubmissionCheck) -> None:
    good = _sort_out(predictions, trajectory_problem, where, check.problems)
    _sort_out(good, _doubt, where, check.doubts)


def _sort_out(
    predictions: Mapping[Any, Any], fault_of: Callable[[Any], str | None], where: str, found: list[str]
) -> dict[Any, Any]:
    """The predictions without fault; one sentence per kind of fault goes into `found`."""
    faults: dict[str, list[Any]] = {}
    good = {}
    for token, value in predictions.items():
        fault = fault_of(value)
        if fault is None:
            good[token] = value
        else:
            faults.setdefault(fault, []).append(token)
    found += [f"{where}: {fault} ({len(tokens)}: {_listed(tokens)})" for fault, tokens in faults.items()]
    return good


def _doubt(value: PickledTrajectory) -> str | None:
    """What is allowed in a good trajectory but hardly meant."""
    poses = np.asarray(value.state["poses"], dtype=np.float64)
    steps_m = np.linalg.norm(np.diff(poses[:, :2], axis=0, prepend=np.zeros((1, 2))), axis=1)
    if steps_m.max() > MAX_SPEED_MPS * POSE_INTERVAL_S:
        return f"poses move faster than {MAX_SPEED_MPS:g} m/s: they must be metres in the ego frame of now"
    if np.abs(poses[:, 2]).max() > 2 * np.pi:
        return "headings exceed a full turn: they must be radians"
    return None


def _listed(names: Sequence[Any]) -> str:
    shown = ", ".join(f"{name!r:.60}" for name in names[:_NUM_LISTED])
    return shown + (f" and {len(names) - _NUM_LISTED} more" if len(names) > _NUM_LISTED else "")
