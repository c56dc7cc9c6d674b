"""Observation -> token ids of the prompt.

A prompt has two segments. The *context* holds the image's placeholder, past motion and command; it is the
same for both tasks. The *instruction* names the task and opens the reply; it is the same for all scenes. So
each is computed once where it is shared.

Numbers are written as text (explicit sign, two decimals, magnitudes up to 0.01 as 0.0) or as action tokens,
the vocabulary of the answer; velocities [m/s] and accelerations [m/s^2] then use the spatial table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.constants import DRIVING_COMMANDS, NUM_HISTORY_FRAMES
from drivefine_agent.data.driving_text import COMMAND_TEXT, format_numbers
from drivefine_agent.data.types import Observation
from drivefine_agent.model.choices import IMAGE_PLACEHOLDER
from drivefine_agent.model.text_tokenizer import (
    END_HEADER,
    END_OF_TURN,
    START_HEADER,
    START_OF_TEXT,
    TextTokenizer,
)
from drivefine_agent.tokenizer import ActionTokenizer

if TYPE_CHECKING:
    from drivefine_agent.model.config import DriveFineConfig


Task = Literal["predict", "refine", "answer"]

_SYSTEM = (
    "You plan the motion of a car for the next 4 seconds. You see its front camera, its own motion over the "
    "last 1.5 seconds and a navigation command. A good plan, in this order: (1) causes no collision, (2) is "
    "on drivable ground, (3) keeps a safe time gap to others, (4) makes progress along the route, (5) is "
    "comfortable, (6) follows the direction of traffic. Others do not react to it; a controller drives it."
)

_ANSWER_SYSTEM = "You see what the front camera of a car sees and answer questions about driving."

INSTRUCTIONS: dict[str, dict[str, str]] = {
    "full": {
        "predict": "\nPredict the 8 future trajectory points (x, y, heading) of the next 4 seconds, "
        "0.5 s apart.",
        "refine": "\nRefine the predicted trajectory of 8 points (x, y, heading) in place.",
        "answer": "",
    },
    "short": {"predict": "predict", "refine": "refine", "answer": ""},
}
"""By wording and task. `answer` is for questions in words: the context ends with the question itself."""


class ContextIds(NamedTuple):
    """A scene's context as token ids."""

    ids: NDArray[np.int64]
    """(C,) with one `IMAGE_PLACEHOLDER`."""
    num_clipped: int
    """Numbers that lay outside the action tables and were moved to their edge; 0 for text."""


@dataclass(frozen=True)
class PromptBuilder:
    """Writes prompts in the format a model was trained with."""

    config: DriveFineConfig
    text_tokenizer: TextTokenizer

    @property
    def action_tokenizer(self) -> ActionTokenizer:
        """Tokenizer of the model's action vocabulary."""
        return ActionTokenizer(self.config.action_spec)

    def context(self, observation: Observation) -> ContextIds:
        """Token ids of everything but the instruction.

        Raises:
          ValueError: if the history has the wrong shape, a number is not finite, or the command is not
            one-hot.
        """
        pieces = _short_pieces if self.config.prompt_wording == "short" else _full_pieces
        return self._to_ids(pieces(_checked(observation), self.config.prompt_type == "vel_and_acc"))

    def question_context(self, question: str) -> NDArray[np.int64]:
        """(C,) token ids of an image and a question about it, one `IMAGE_PLACEHOLDER` before the question.

        Use with `instruction("answer")`. The image's column is the same for all questions.
        """
        if self.config.prompt_wording == "short":
            return self._to_ids([START_OF_TEXT, None, question]).ids
        opening = f"{START_OF_TEXT}{_header('system')}{_ANSWER_SYSTEM}{END_OF_TURN}{_header('user')}"
        return self._to_ids([opening, None, f"\n{question}"]).ids

    def instruction(self, task: Task) -> NDArray[np.int64]:
        """(P1,) token ids of a task's instruction, the end of the user's turn and the reply's header.

        Raises:
          ValueError: for an unknown task.
        """
        texts = INSTRUCTIONS[self.config.prompt_wording]
        if task not in texts:
            raise ValueError(f"unknown task {task!r}: choose one of {', '.join(texts)}")
        text = texts[task] + END_OF_TURN
        if self.config.prompt_wording == "full":
            text += _header("assistant")
        return np.array(self.text_tokenizer.encode(text), dtype=np.int64)

    def context_text(self, observation: Observation) -> str:
        """The context as text, numbers written out, `<image>` in the image's place. For people to read."""
        pieces = _short_pieces if self.config.prompt_wording == "short" else _full_pieces
        parts = pieces(_checked(observation), self.config.prompt_type == "vel_and_acc")
        return "".join(
            "<image>" if p is None else p if isinstance(p, str) else format_numbers(p.values) for p in parts
        )

    def _to_ids(self, pieces: list[_Piece]) -> ContextIds:
        """Joins pieces; text between non-text pieces is encoded in one go, as merges cross piece borders."""
        ids: list[int] = []
        text = ""
        num_clipped = 0
        for piece in pieces:
            if isinstance(piece, str):
                text += piece
                continue
            if piece is not None and self.config.pose_format == "text":
                text += format_numbers(piece.values)
                continue
            ids += self.text_tokenizer.encode(text) if text else []
            text = ""
            if piece is None:
                ids.append(IMAGE_PLACEHOLDER)
                continue
            actions, clipped = self._action_ids(piece)
            num_clipped += clipped
            ids += (self.config.base_vocab_size + actions).tolist()
        ids += self.text_tokenizer.encode(text) if text else []
        return ContextIds(np.array(ids, dtype=np.int64), num_clipped)

    def _action_ids(self, numbers: _Numbers) -> tuple[NDArray[np.int64], int]:
        tokenizer = self.action_tokenizer
        if numbers.is_pose:
            padded = np.zeros((tokenizer.spec.num_poses, 3))
            padded[0] = numbers.values
            return tokenizer.encode_poses(numbers.values), int(tokenizer.is_clipped(padded).sum())
        padded = np.zeros((tokenizer.spec.num_poses, 3))
        padded[0, :2] = numbers.values
        return tokenizer.encode_spatial(numbers.values), int(tokenizer.is_clipped(padded).sum())


class _Numbers(NamedTuple):
    """Numbers inside a prompt: a pose (x, y, heading) or a planar vector."""

    values: NDArray[np.float64]
    is_pose: bool


_Piece = str | _Numbers | None
"""Text, numbers, or the image (None)."""


def ego_status(observation: Observation) -> NDArray[np.float32]:
    """(20,) the prompt's numbers as numbers, for the diffusion head of the baselines.

    Velocity [m/s] (2), acceleration [m/s^2] (2), command (4), past poses (4 x 3) [m, m, rad].

    Raises:
      ValueError: as `PromptBuilder.context`.
    """
    _checked(observation)
    parts = (observation.velocity, observation.acceleration, observation.driving_command)
    return np.concatenate([*parts, np.asarray(observation.history_poses).flatten()]).astype(np.float32)


def pad_contexts(
    contexts: Sequence[NDArray[np.int64]], pad_id: int, multiple: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Stacks contexts of different lengths.

    Args:
      contexts: B arrays (C_b,).
      pad_id: what fills the right side.
      multiple: of which the padded length is one, so that few lengths occur.

    Returns:
      (B, C) ids, and (B,) lengths, or None where nothing is padded (then the model uses no mask).
    """
    lengths = np.array([len(ids) for ids in contexts], dtype=np.int64)
    longest = multiple * math.ceil(lengths.max() / multiple)
    padded = np.full((len(contexts), longest), pad_id, dtype=np.int64)
    for row, ids in zip(padded, contexts, strict=True):
        row[: len(ids)] = ids
    return padded, None if (lengths == longest).all() else lengths


def _full_pieces(observation: Observation, has_dynamics: bool) -> list[_Piece]:
    """Chat turns in the paper's structure: a numbered list of what is given."""
    pieces: list[_Piece] = [
        f"{START_OF_TEXT}{_header('system')}{_SYSTEM}{END_OF_TURN}{_header('user')}",
        None,
        "\nPlan the trajectory of the car that took this picture, given:\n"
        "1. Camera: the picture above, front view.\n"
        "2. Past motion, oldest first, (x [m], y [m], heading [rad]) relative to now:",
    ]
    for age, pose in zip(range(NUM_HISTORY_FRAMES - 1, -1, -1), observation.history_poses, strict=True):
        pieces += [f" t-{age} ", _Numbers(pose, is_pose=True)]
    pieces.append(f"\n3. Navigation command: {_command(observation)}")
    if has_dynamics:
        pieces += ["\n4. Velocity now [m/s]: ", _Numbers(observation.velocity, is_pose=False)]
        pieces += ["\n5. Acceleration now [m/s^2]: ", _Numbers(observation.acceleration, is_pose=False)]
    return pieces


def _short_pieces(observation: Observation, has_dynamics: bool) -> list[_Piece]:
    """The same content in few tokens; the current pose, (0, 0, 0) by definition, is left out."""
    pieces: list[_Piece] = [START_OF_TEXT, None]
    pieces += [_Numbers(pose, is_pose=True) for pose in observation.history_poses[:-1]]
    if has_dynamics:
        pieces += [
            _Numbers(observation.velocity, is_pose=False),
            _Numbers(observation.acceleration, is_pose=False),
        ]
    return [*pieces, _command(observation)]


def _command(observation: Observation) -> str:
    return COMMAND_TEXT[DRIVING_COMMANDS[int(np.argmax(observation.driving_command))]]


def _header(role: str) -> str:
    return f"{START_HEADER}{role}{END_HEADER}\n\n"


def _checked(observation: Observation) -> Observation:
    shapes = {"history_poses": (NUM_HISTORY_FRAMES, 3), "velocity": (2,), "acceleration": (2,)}
    for name, shape in shapes.items():
        values = np.asarray(getattr(observation, name))
        if values.shape != shape:
            raise ValueError(f"observation.{name} must have shape {shape}, got {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"observation.{name} must be finite, got {values.tolist()}")
    command = np.asarray(observation.driving_command)
    if command.shape != (len(DRIVING_COMMANDS),) or sorted(command.tolist()) != [0, 0, 0, 1]:
        raise ValueError(
            f"observation.driving_command must be one-hot over {DRIVING_COMMANDS}, got {command.tolist()}"
        )
    return observation
