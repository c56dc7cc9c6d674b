"""ReCogDrive's JSON-lines files: one conversation about one image per line (model.md 5.2).

    {"id": 0, "image": ["<log>/CAM_F0/<token>.jpg"], "token": "...", "conversations": [
        {"from": "system", "value": "..."},
        {"from": "human", "value": "<image> ..."}, {"from": "gpt", "value": "..."}]}

A trajectory set has `token` and one question, a QA set several questions in a row. Every line is checked when
a file is opened, so that a damaged one is found before training starts; the text itself stays on disk and is
read line by line when asked for, from any number of processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from drivefine_agent.data.atomic import atomic_file
from drivefine_agent.data.driving_text import motion_question, trajectory_text
from drivefine_agent.data.json_text import parse_json
from drivefine_agent.data.types import FloatArray, Observation
from drivefine_agent.errors import DataError

_AGAIN = "correct the line, or export the file again"

IMAGE_MARK = "<image>"
SYSTEM_TEXT = "You plan the motion of a car for the next 4 seconds."
"""System turn of the files we write; our own prompts have their own (`prompt.py`)."""
_SHOWN = 80  # characters of a line that an error quotes


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str
    """Without the image's mark."""
    answer: str


@dataclass(frozen=True)
class Conversation:
    """One line of a file."""

    where: str
    """`<file>, line <number>`, for messages."""
    image: str
    """As the file names it."""
    token: str | None
    """Of the NAVSIM sample, where the file tells it."""
    turns: tuple[Turn, ...]
    """At least one."""


class ConversationFile:
    """The lines of one file by position; only their places are held in memory."""

    def __init__(self, path: str | Path, show_progress: bool = True) -> None:
        """Reads and checks every line once.

        Raises:
          DataError: the file is missing or empty, or a line is not a conversation; names file and line.
        """
        self.path = Path(path)
        starts: list[int] = []
        images: list[str] = []
        tokens: list[str | None] = []
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                bar = tqdm(
                    total=size, desc=self.path.name, unit="B", unit_scale=True, disable=not show_progress
                )
                with bar:
                    start = 0
                    for line in file:
                        conversation = _parse(line, self._where(len(starts)))
                        images.append(conversation.image)
                        tokens.append(conversation.token)
                        starts.append(start)
                        start += len(line)
                        bar.update(len(line))
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror or error}") from error
        if not starts:
            raise DataError(
                f"expected one JSON object per line, got an empty file: {self.path}; export it again"
            )
        self.images: tuple[str, ...] = tuple(images)
        """The image of each line, as the file names it."""
        self.tokens: tuple[str | None, ...] = tuple(tokens)
        """The NAVSIM sample of each line, where the file tells it."""
        self._starts = np.array(starts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Conversation:
        """Line `index`, 0-based."""
        with self.path.open("rb") as file:
            file.seek(int(self._starts[index]))
            return _parse(file.readline(), self._where(index))

    def _where(self, index: int) -> str:
        return f"{self.path}, line {index + 1}"


def relative_image(image: str, prefix: str | None, where: str) -> str:
    """An image's path below the image root.

    Args:
      image: as a file names it; ReCogDrive's own files have absolute paths of the machine they were made on.
      prefix: leading folders to take off, None: none.
      where: file and line, for messages.

    Raises:
      DataError: the path does not start with the prefix, is absolute after it, or leaves the root.
    """
    path = PurePosixPath(image)
    if prefix is not None:
        if not path.is_relative_to(prefix):
            raise DataError(
                f"{where}: expected an image below {prefix} (image_prefix), found {image!r}"
                "; correct image_prefix"
            )
        path = path.relative_to(prefix)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise DataError(
            f"{where}: expected an image path below the image root, found {image!r}: set image_prefix to the "
            "folders that the image root stands for"
        )
    return str(path)


def trajectory_record(
    number: int, image: str, token: str, observation: Observation, poses: FloatArray, has_dynamics: bool
) -> dict[str, Any]:
    """A line of a trajectory set.

    Args:
      number: the record's id.
      image: path below the image root.
      token: of the NAVSIM sample.
      observation: motion and command; its image is not used.
      poses: (8, 3) what the driver did.
      has_dynamics: whether velocity and acceleration are in the question (`vel_and_acc`).
    """
    turn = Turn(motion_question(observation, has_dynamics), trajectory_text(poses))
    system = {"from": "system", "value": SYSTEM_TEXT}
    return {"id": number, "image": [image], "token": token, "conversations": [system, *_messages([turn])]}


def question_record(
    number: int, image: str, turns: Iterable[Turn], token: str | None = None
) -> dict[str, Any]:
    """A line of a QA set, its first question marked with the image's place; `token` of the sample."""
    messages = _messages(turns)
    messages[0]["value"] = f"{IMAGE_MARK}\n{messages[0]['value']}"
    known = {} if token is None else {"token": token}
    return {"id": number, "image": [image], **known, "conversations": messages}


def write_records(path: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes a file, complete or not at all; returns the number of lines.

    Raises:
      DataError: the place cannot be written.
    """
    path, count = Path(path), 0
    with atomic_file(path) as file:
        for count, record in enumerate(records, start=1):  # noqa: B007
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    return count


def _messages(turns: Iterable[Turn]) -> list[dict[str, str]]:
    return [
        {"from": role, "value": value}
        for turn in turns
        for role, value in (("human", turn.question), ("gpt", turn.answer))
    ]


def _parse(line: bytes, where: str) -> Conversation:
    try:
        record = parse_json(line, where)
    except DataError as error:
        raise DataError(f"{where}: expected a JSON object ({error}), found {_shown(line)}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {_shown(line)}; {_AGAIN}")
    image = record.get("image")
    images = [image] if isinstance(image, str) else image
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], str):
        raise DataError(f"{where}: expected 'image' to be a list of one path, found {image!r}; {_AGAIN}")
    token = record.get("token")
    if token is not None and not isinstance(token, str):
        raise DataError(f"{where}: expected 'token' to be a string, found {token!r}; {_AGAIN}")
    return Conversation(where, images[0], token, _parse_turns(record.get("conversations"), where))


def _parse_turns(messages: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list):
        raise DataError(f"{where}: expected 'conversations' to be a list, found {messages!r}; {_AGAIN}")
    roles, values = [], []
    for message in messages:
        is_message = isinstance(message, dict) and {"from", "value"} <= message.keys()
        if not is_message or not isinstance(message["value"], str):
            raise DataError(
                f"{where}: expected messages {{'from', 'value': text}}, found {message!r}; {_AGAIN}"
            )
        roles.append(message["from"])
        values.append(message["value"])
    first = 1 if roles[:1] == ["system"] else 0
    num_turns = (len(roles) - first) // 2
    if num_turns == 0 or roles[first:] != ["human", "gpt"] * num_turns:
        raise DataError(
            f"{where}: expected turns [system,] human, gpt, human, gpt, ... in 'conversations', found {roles}"
            f"; {_AGAIN}"
        )
    questions = [value.replace(IMAGE_MARK, "").strip() for value in values[first::2]]
    return tuple(Turn(q, a.strip()) for q, a in zip(questions, values[first + 1 :: 2], strict=True))


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace").rstrip("\n")
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
