"""ReCogDrive's JSON-lines files: parsed as published, damaged ones named by file, line and what is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivefine_agent.data.driving_text import motion_question, parse_motion, parse_trajectory, trajectory_text
from drivefine_agent.data.recogdrive import (
    ConversationFile,
    Turn,
    question_record,
    relative_image,
    trajectory_record,
    write_records,
)
from drivefine_agent.data.types import Observation
from drivefine_agent.errors import DataError

POSES = np.array([[2.0 * k, 0.127 * k, 0.013 * k] for k in range(1, 9)])
# Structure of the published files (model.md 5.1, 5.2), in other words.
BASE_QUESTION = (
    "<image>\n\nAs a planner, give a trajectory based on:\n1. Front camera\n2. Motion (last 4 timesteps):"
    "-t-3: (-6.25, +0.31, -0.05) -t-2: (-4.10, +0.12, -0.03) -t-1: (-2.02, 0.0, 0.0) -t-0: (0.0, 0.0, 0.0)\n"
    "3. Command: [TURN LEFT]\nOutput requirements:\n- Use [PT, ...]"
)
DYNAMICS = (
    "\n4. Current velocity: (+4.15, -0.02)\n5. Current acceleration: (0.0, +0.30)\nOutput requirements:"
)


def observation() -> Observation:
    return Observation(
        np.zeros((1, 1, 3), dtype=np.uint8),
        np.array([[-6.254, 0.314, -0.05], [-4.1, 0.12, -0.03], [-2.02, 0.004, 0.0], [0.0, 0.0, 0.0]]),
        np.array([4.149, -0.02]),
        np.array([0.004, 0.3]),
        np.array([1, 0, 0, 0]),
    )


def test_published_question_is_understood() -> None:
    motion = parse_motion(BASE_QUESTION)
    expected = [[-6.25, 0.31, -0.05], [-4.1, 0.12, -0.03], [-2.02, 0, 0], [0, 0, 0]]
    assert motion.history_poses.tolist() == expected
    assert motion.command == "left"
    assert motion.velocity is None
    assert motion.acceleration is None
    motion = parse_motion(BASE_QUESTION.replace("\nOutput requirements:", DYNAMICS))
    assert motion.velocity is not None
    assert motion.acceleration is not None
    assert motion.velocity.tolist() == [4.15, -0.02]
    assert motion.acceleration.tolist() == [0.0, 0.3]


def test_our_question_says_the_same_as_the_published_one() -> None:
    ours = parse_motion(motion_question(observation(), has_dynamics=True))
    published = parse_motion(BASE_QUESTION.replace("\nOutput requirements:", DYNAMICS))
    for mine, theirs in zip(vars(ours).values(), vars(published).values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert parse_motion(motion_question(observation(), has_dynamics=False)).velocity is None


def test_answer_is_rounded_to_two_decimals_and_small_numbers_to_zero() -> None:
    text = trajectory_text(POSES)
    # 0.013 rounds to 0.01, which is written 0.0; 0.026 to +0.03.
    assert "[PT, (+2.00, +0.13, 0.0), (+4.00, +0.25, +0.03), " in text
    parsed = parse_trajectory(text)
    assert parsed.shape == (8, 3)
    assert np.abs(parsed - POSES).max() <= 0.0131
    np.testing.assert_array_equal(parse_trajectory(f"Here it is: {text[text.index('[') :]}"), parsed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(+1.00, 0.0, 0.0)", r"expected one \[PT, .* found 0"),
        ("[PT, " + ", ".join(["(+1.00, 0.0, 0.0)"] * 7) + "].", "expected 8 triples .* found 7"),
        ("[PT, " + ", ".join(["(+1.00, 0.0, 0.0)"] * 9) + "].", "expected 8 triples .* found 9"),
        ("[PT, " + ", ".join(["(+1.00, 0.0, 0.0)"] * 7) + ", (+1.00, nan, 0.0)].", "expected 8 triples"),
        ("[PT, " + ", ".join(["(+1.00, 0.0, 0.0)"] * 8) + ", (+1.0].", "expected 8 triples"),
    ],
)
def test_malformed_answers_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_trajectory(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("t-2", "t-4"), "expected one history pose 't-2:"),
        (("[TURN LEFT]", "left"), "expected one navigation command .* found 0"),
    ],
)
def test_questions_without_motion_are_refused(change: tuple[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_motion(BASE_QUESTION.replace(*change))


def test_written_files_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "traj.jsonl"
    records = [
        trajectory_record(i, f"log/CAM_F0/{i}.jpg", f"token{i}", observation(), POSES, True) for i in range(3)
    ]
    assert write_records(file, records) == 3
    conversations = ConversationFile(file, show_progress=False)
    assert conversations.images == ("log/CAM_F0/0.jpg", "log/CAM_F0/1.jpg", "log/CAM_F0/2.jpg")
    last = conversations[2]
    assert (last.token, len(last.turns)) == ("token2", 1)
    assert "<image>" not in last.turns[0].question
    np.testing.assert_array_equal(
        parse_trajectory(last.turns[0].answer), parse_trajectory(trajectory_text(POSES))
    )
    turns = [Turn("How many?", "Drei Fußgänger."), Turn("Where?", "Ahead.")]
    write_records(file, [question_record(7, "a.jpg", turns)])
    assert ConversationFile(file, show_progress=False)[0].turns == tuple(turns)
    assert json.loads(file.read_text())["conversations"][0]["value"] == "<image>\nHow many?"


def _line(**changes: Any) -> str:
    messages = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    return json.dumps({"id": 0, "image": ["a.jpg"], "conversations": messages} | changes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (_line()[:40], 'line 3: expected a JSON object .* found \'{"id": 0'),
        ("", "line 3: expected a JSON object"),
        ("[1, 2]", "line 3: expected a JSON object, found '\\[1, 2\\]'"),
        (_line(image=["a.jpg", "b.jpg"]), r"line 3: expected 'image' to be a list of one path, found \['a"),
        (_line(image=None), "line 3: expected 'image' .* found None"),
        (_line(token=5), "line 3: expected 'token' to be a string, found 5"),
        (_line(conversations={}), "line 3: expected 'conversations' to be a list"),
        (_line(conversations=[]), r"line 3: expected turns .* found \[\]"),
        (_line(conversations=[{"from": "human", "value": "q"}]), r"expected turns .* found \['human'\]"),
        (_line(conversations=[{"from": "human", "value": 3}]), r"line 3: expected messages .* found {'from'"),
        (_line(conversations=["q", "a"]), "line 3: expected messages .* found 'q'"),
        ("\udcff", "line 3: expected a JSON object"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "qa.jsonl"
    content = "\n".join([_line(), _line(), line, _line()]) + "\n"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message) as raised:
        ConversationFile(file, show_progress=False)
    assert str(file) in str(raised.value)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl"):
        ConversationFile(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"got an empty file: .*empty\.jsonl"):
        ConversationFile(tmp_path / "empty.jsonl", show_progress=False)


def test_image_paths_stay_below_their_root() -> None:
    path = "/their/disk/sensor_blobs/trainval/log/CAM_F0/a.jpg"
    assert relative_image(path, "/their/disk/sensor_blobs/trainval", "") == "log/CAM_F0/a.jpg"
    assert relative_image("log/CAM_F0/a.jpg", None, "") == "log/CAM_F0/a.jpg"
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: .* set image_prefix"):
        relative_image(path, None, "x.jsonl, line 2")
    with pytest.raises(DataError, match="expected an image below /other"):
        relative_image(path, "/other", "")
    with pytest.raises(DataError, match="below the image root"):
        relative_image("../a.jpg", None, "")


def test_question_record_names_its_sample(tmp_path):
    file = tmp_path / "qa.jsonl"
    write_records(file, [question_record(0, "a.jpg", [Turn("What?", "A car.")], "token0")])
    assert ConversationFile(file, show_progress=False).tokens == ("token0",)
