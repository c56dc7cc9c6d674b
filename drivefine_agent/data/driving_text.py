"""Motion and command as text, and back: the conventions of ReCogDrive's prompts and answers.

Numbers have an explicit sign and two decimals; magnitudes up to 0.01 are written 0.0. Lengths in metres,
headings in radians, ego frame. Two decimals are 0.005 m at most in position but 0.29 degrees in heading, six
times coarser than the paper's heading table: text is for exchange, training reads raw poses where it can
(model.md 1.9, A5). Structure of question and answer: model.md 5.1 and 5.2; the words here are our own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drivefine_agent.constants import DRIVING_COMMANDS, NUM_HISTORY_FRAMES, NUM_POSES
from drivefine_agent.data.types import FloatArray, Observation
from drivefine_agent.errors import DataError

COMMAND_TEXT = {
    "left": "[TURN LEFT]",
    "straight": "[GO STRAIGHT]",
    "right": "[TURN RIGHT]",
    "unknown": "[UNKNOWN]",
}

_NUMBER = r"\s*([+-]?\d+(?:\.\d+)?)\s*"
_VECTOR = rf"\({_NUMBER},{_NUMBER}\)"
_TRIPLE = rf"\({_NUMBER},{_NUMBER},{_NUMBER}\)"
_TRAJECTORY = re.compile(r"\[\s*PT\s*,([^\[\]]*)\]")
_POINTS = re.compile(rf"\s*{_TRIPLE}(?:\s*,\s*{_TRIPLE})*\s*,?\s*")
_MAX_LENGTH = 20_000  # of a text; the patterns above take time by its square on crafted ones
_SHOWN = 120  # characters of a text that an error quotes


@dataclass(frozen=True)
class MotionText:
    """What a question tells of the ego's motion."""

    history_poses: FloatArray
    """(4, 3) at -1.5, -1.0, -0.5, 0 s."""
    command: str
    """One of DRIVING_COMMANDS."""
    velocity: FloatArray | None
    """(2,) [m/s], None where the question has none (ReCogDrive's base prompt)."""
    acceleration: FloatArray | None
    """(2,) [m/s^2], None as above."""


def format_number(value: float) -> str:
    """Explicit sign and two decimals; 0.0 where the rounded magnitude is at most 0.01."""
    return "0.0" if abs(round(value, 2)) <= 0.01 else f"{value:+.2f}"


def format_numbers(values: Sequence[float] | FloatArray) -> str:
    """`(+1.23, 0.0, -0.45)`."""
    return "(" + ", ".join(format_number(float(v)) for v in values) + ")"


def trajectory_text(poses: FloatArray) -> str:
    """The answer to a trajectory question, of (8, 3) poses."""
    return f"The planned trajectory is [PT, {', '.join(format_numbers(pose) for pose in poses)}]."


def parse_trajectory(text: str) -> FloatArray:
    """(8, 3) poses of an answer `... [PT, (x, y, heading), ...] ...`.

    Raises:
      DataError: there is no such list, or it does not hold exactly 8 triples of numbers.
    """
    _check_length(text)
    lists = _TRAJECTORY.findall(text)
    if len(lists) != 1:
        raise DataError(
            f"expected one [PT, (x, y, heading), ...] in the answer, found {len(lists)} in {_shown(text)}"
        )
    triples = re.findall(_TRIPLE, lists[0])
    if len(triples) != NUM_POSES or not _POINTS.fullmatch(lists[0]):
        raise DataError(
            f"expected {NUM_POSES} triples (x, y, heading) of decimal numbers in [PT, ...], "
            f"found {len(triples)} in {_shown(lists[0])}"
        )
    return _finite(np.array(triples, dtype=np.float64), text)


def motion_question(observation: Observation, has_dynamics: bool) -> str:
    """The question whose answer is a trajectory: numbered list of what is given, then the answer's format.

    Args:
      observation: history, command, and with `has_dynamics` velocity and acceleration are written out.
      has_dynamics: ReCogDrive's prompt type `vel_and_acc` in place of `base`.
    """
    ages = range(NUM_HISTORY_FRAMES - 1, -1, -1)
    history = " ".join(
        f"t-{age}: {format_numbers(pose)}" for age, pose in zip(ages, observation.history_poses, strict=True)
    )
    command = COMMAND_TEXT[DRIVING_COMMANDS[int(np.argmax(observation.driving_command))]]
    lines = [
        "<image>",
        "Plan the trajectory of the car that took this picture, given:",
        "1. Camera: the picture, front view",
        f"2. Past motion, last {NUM_HISTORY_FRAMES} time steps: {history}",
        f"3. Navigation command: {command}",
    ]
    if has_dynamics:
        lines.append(f"4. Current velocity: {format_numbers(observation.velocity)}")
        lines.append(f"5. Current acceleration: {format_numbers(observation.acceleration)}")
    lines += [
        "The answer:",
        f"- {NUM_POSES} future points, 0.5 s apart",
        "- each point as (x, y, heading)",
        "- all points inside [PT, ...]",
        "- two decimals",
    ]
    return "\n".join(lines)


def parse_motion(text: str) -> MotionText:
    """History, command and dynamics out of a question, ours or ReCogDrive's.

    Read are `t-3` to `t-0`, each followed by a triple, the command in capitals and square brackets, and the
    pairs that follow the words velocity and acceleration, where there are any.

    Raises:
      DataError: a history pose or the command is missing.
    """
    _check_length(text)
    history = []
    for age in range(NUM_HISTORY_FRAMES - 1, -1, -1):
        found = re.findall(rf"\bt-{age}\s*:?\s*{_TRIPLE}", text)
        if len(found) != 1:
            raise DataError(
                f"expected one history pose 't-{age}: (x, y, heading)' in the question, "
                f"found {len(found)} in {_shown(text)}"
            )
        history.append(found[0])
    commands = [name for name, word in COMMAND_TEXT.items() if word in text]
    if len(commands) != 1:
        known = ", ".join(COMMAND_TEXT.values())
        raise DataError(
            f"expected one navigation command ({known}) in the question, "
            f"found {len(commands)} in {_shown(text)}"
        )
    return MotionText(
        _finite(np.array(history, dtype=np.float64), text),
        commands[0],
        _pair_after("velocity", text),
        _pair_after("acceleration", text),
    )


def spread_rounding(values: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Numbers read from text, each moved to a random place of the interval that the text rounds to it.

    Rounded headings take only every sixth row of the paper's heading table; a model that learned from those
    meets the others for the first time when it drives. Uniform dequantisation gives it all of them.

    Args:
      values: (...) as `format_number` writes them: multiples of 0.01, and 0 for magnitudes below 0.015.
      rng: random numbers.
    """
    half_width = np.where(values == 0.0, 0.015, 0.005)
    return values + half_width * rng.uniform(-1.0, 1.0, size=np.shape(values))


def _pair_after(word: str, text: str) -> FloatArray | None:
    found = re.search(rf"{word}[^()\n]*{_VECTOR}", text, flags=re.IGNORECASE)
    return None if found is None else _finite(np.array(found.groups(), dtype=np.float64), text)


def _check_length(text: str) -> None:
    if len(text) > _MAX_LENGTH:
        raise DataError(
            f"a text about driving may have {_MAX_LENGTH} characters, got {len(text)}: {_shown(text)}"
        )


def _finite(values: FloatArray, text: str) -> FloatArray:
    if not np.isfinite(values).all():
        raise DataError(
            f"expected numbers of a reasonable size, found one of hundreds of digits in {_shown(text)}"
        )
    return values


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
