"""Prompts of the 8B model with LLaDA's special ids and chat template; expected strings and ids by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from foreign_checkpoints import LLADA_IDS, llada_tokenizer, make_tokenizer

from drivefine_agent.data.types import Observation
from drivefine_agent.errors import DataError
from drivefine_agent.model.choices import IMAGE_PLACEHOLDER
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.text_tokenizer import TextTokenizer, check_tokenizer, number_ids
from drivefine_agent.prompt import PromptBuilder
from drivefine_agent.tokenizer import ActionTokenizer

BOS, EOT, OPEN, CLOSE = 126080, 126348, 126346, 126347
NEWLINE = 198
REPLY_HEADER = [OPEN, 598, 10450, CLOSE, NEWLINE, NEWLINE]
"""As LLaDA's own tokenizer writes it."""

SYSTEM = (
    "You plan the motion of a car for the next 4 seconds. You see its front camera, its own motion over the "
    "last 1.5 seconds and a navigation command. A good plan, in this order: (1) causes no collision, (2) is "
    "on drivable ground, (3) keeps a safe time gap to others, (4) makes progress along the route, (5) is "
    "comfortable, (6) follows the direction of traffic. Others do not react to it; a controller drives it."
)
CONTEXT = (
    "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\n" + SYSTEM + "<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n<image>\n"
    "Plan the trajectory of the car that took this picture, given:\n"
    "1. Camera: the picture above, front view.\n"
    "2. Past motion, oldest first, (x [m], y [m], heading [rad]) relative to now:"
    " t-3 (-12.35, +0.41, -0.08) t-2 (-8.20, +0.18, -0.05) t-1 (-4.07, 0.0, -0.02) t-0 (0.0, 0.0, 0.0)\n"
    "3. Navigation command: [TURN RIGHT]"
)
DYNAMICS = "\n4. Velocity now [m/s]: (+8.31, -0.12)\n5. Acceleration now [m/s^2]: (-1.50, 0.0)"


def observation() -> Observation:
    return Observation(
        image=np.zeros((1080, 1920, 3), dtype=np.uint8),
        history_poses=np.array(
            [[-12.349, 0.409, -0.081], [-8.2, 0.176, -0.05], [-4.0703, 0.013, -0.02], [0.0, 0.0, 0.0]]
        ),
        velocity=np.array([8.312, -0.1249]),
        acceleration=np.array([-1.5, 0.0099]),
        driving_command=np.array([0, 0, 1, 0]),
    )


def builder(**overrides: object) -> PromptBuilder:
    return PromptBuilder(DriveFineConfig.llada_8b(**overrides), llada_tokenizer())


@pytest.mark.parametrize(
    ("prompt_type", "text"),
    [("base", CONTEXT), ("vel_and_acc", CONTEXT + DYNAMICS)],
    ids=["base", "vel_and_acc"],
)
def test_the_context_is_the_template_filled_in(prompt_type: str, text: str) -> None:
    prompts = builder(prompt_type=prompt_type)
    assert prompts.context_text(observation()) == text
    ids = prompts.context(observation()).ids.tolist()
    before, after = text.split("<image>")
    place = ids.index(IMAGE_PLACEHOLDER)
    assert prompts.text_tokenizer.decode(ids[:place]) == before
    assert prompts.text_tokenizer.decode(ids[place + 1 :]) == after


def test_special_ids_stand_where_llada_has_them() -> None:
    prompts = builder()
    ids = prompts.context(observation()).ids.tolist()
    # The first message opens with the start of text, the second does not.
    assert ids[:2] == [BOS, OPEN]
    assert ids.count(BOS) == 1
    place = ids.index(IMAGE_PLACEHOLDER)
    # "user" is bytes here: printable ASCII c is token ord(c) - 33.
    assert ids[place - 8 : place + 2] == [
        OPEN, ord("u") - 33, ord("s") - 33, ord("e") - 33, ord("r") - 33, CLOSE, NEWLINE, NEWLINE,
        IMAGE_PLACEHOLDER, NEWLINE,
    ]  # fmt: skip
    assert ids[place - 9] == EOT
    assert [token for token in ids if token >= 126080] == [BOS, OPEN, CLOSE, EOT, OPEN, CLOSE]


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (
            "predict",
            "\nPredict the 8 future trajectory points (x, y, heading) of the next 4 seconds, 0.5 s apart.",
        ),
        ("refine", "\nRefine the predicted trajectory of 8 points (x, y, heading) in place."),
    ],
)
def test_the_instruction_ends_the_turn_and_opens_the_reply(task: str, text: str) -> None:
    prompts = builder()
    ids = prompts.instruction(task).tolist()
    assert ids[0] == NEWLINE
    assert ids[-7:] == [EOT, *REPLY_HEADER]
    assert prompts.text_tokenizer.decode(ids[:-7]) == text
    assert BOS not in ids


def test_actions_lie_above_the_text_vocabulary() -> None:
    prompts = builder(pose_format="action_tokens")
    ids = prompts.context(observation()).ids
    actions = ids[ids >= 126464] - 126464
    # (-12.349 + 100) / 0.05 = 1753.02; (0.409 + 100) / 0.05 = 2008.18; -0.081 rad = -4.641 deg: 4000 + 853.59
    assert actions[:3].tolist() == [1753, 2008, 4854]
    assert len(actions) == 12
    assert ids.max() < 126464 + 5800
    assert len(prompts.text_tokenizer) <= 126349
    zeros = ActionTokenizer(prompts.config.action_spec).encode(np.zeros((8, 3)))
    assert (zeros + prompts.config.base_vocab_size).tolist() == [128464, 128464, 131364] * 8


def test_a_users_tokenizer_file_is_read_offline_and_checked(tmp_path: Path) -> None:
    llada_tokenizer().save(tmp_path)
    tokenizer = TextTokenizer.from_file(tmp_path)
    check_tokenizer(tokenizer, DriveFineConfig.llada_8b())
    check_tokenizer(TextTokenizer.tiny(), DriveFineConfig.tiny())
    assert number_ids(tokenizer) == [15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 13, 12]  # ord(c) - 33
    moved = make_tokenizer(LLADA_IDS | {"<|eot_id|>": 126340}, {})
    with pytest.raises(DataError, match=r"must belong to its model: <\|eot_id\|> is 126340, not 126348"):
        check_tokenizer(moved, DriveFineConfig.llada_8b())
    with pytest.raises(DataError, match=r"lacks <\|endoftext\|>, <\|mdm_mask\|>"):
        make_tokenizer({"<|startoftext|>": 126080}, {})
