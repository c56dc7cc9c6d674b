"""Prompts and the path from observations to trajectories."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from drivefine_agent.data.driving_text import COMMAND_TEXT, format_number
from drivefine_agent.data.types import Observation
from drivefine_agent.diffusion.decoding import DecodingOptions
from drivefine_agent.errors import DataError
from drivefine_agent.model.choices import IMAGE_PLACEHOLDER
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.model.text_tokenizer import (
    SPECIAL_TOKENS,
    TINY_TOKENIZER_FILE,
    TextTokenizer,
    train_text_tokenizer,
)
from drivefine_agent.planner import Planner
from drivefine_agent.prompt import PromptBuilder, pad_contexts

TOKENIZER = TextTokenizer.tiny()


def observation(command: str = "left", seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    history = np.array([[-6.0, 0.3, -0.05], [-4.0, 0.15, -0.03], [-2.0, 0.004, -0.01], [0.0, 0.0, 0.0]])
    return Observation(
        image=rng.integers(0, 256, (1080, 1920, 3), dtype=np.uint8),
        history_poses=history,
        velocity=np.array([4.0, -0.02]),
        acceleration=np.array([0.5, 0.0]),
        driving_command=np.eye(4, dtype=np.int64)[("left", "straight", "right", "unknown").index(command)],
    )


def builder(**settings: object) -> PromptBuilder:
    return PromptBuilder(DriveFineConfig.tiny(**settings), TOKENIZER)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.234, "+1.23"), (-0.451, "-0.45"), (0.0, "0.0"), (0.0149, "0.0"), (-0.01, "0.0"), (0.0151, "+0.02"),
        (-12.0, "-12.00"),
    ],
)  # fmt: skip
def test_number_format(value: float, text: str) -> None:
    assert format_number(value) == text


def test_full_text_prompt_reads_as_specified() -> None:
    prompts = builder(pose_format="text", prompt_wording="full", prompt_type="base")
    text = prompts.context_text(observation())
    assert text.startswith("<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nYou plan")
    assert "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\n" in text
    assert (
        "t-3 (-6.00, +0.30, -0.05) t-2 (-4.00, +0.15, -0.03) t-1 (-2.00, 0.0, 0.0) t-0 (0.0, 0.0, 0.0)"
        in text
    )
    assert text.endswith("3. Navigation command: [TURN LEFT]")
    context = prompts.context(observation())
    assert (context.ids == IMAGE_PLACEHOLDER).sum() == 1
    assert TOKENIZER.decode(context.ids[context.ids >= 0]) == text.replace("<image>", "")
    instruction = TOKENIZER.decode(prompts.instruction("predict"))
    assert "8 future trajectory points" in instruction
    assert instruction.endswith("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    assert "Refine" in TOKENIZER.decode(prompts.instruction("refine"))


def test_velocity_and_acceleration_are_a_switch() -> None:
    base = builder(pose_format="text", prompt_wording="full", prompt_type="base").context_text(observation())
    more = builder(pose_format="text", prompt_wording="full", prompt_type="vel_and_acc").context_text(
        observation()
    )
    assert more == base + (
        "\n4. Velocity now [m/s]: (+4.00, -0.02)\n5. Acceleration now [m/s^2]: (+0.50, 0.0)"
    )


@pytest.mark.parametrize("command", ["left", "straight", "right", "unknown"])
@pytest.mark.parametrize("wording", ["full", "short"])
@pytest.mark.parametrize("pose_format", ["text", "action_tokens"])
def test_every_command_is_written_in_brackets(command: str, wording: str, pose_format: str) -> None:
    prompts = builder(prompt_wording=wording, pose_format=pose_format)
    ids = prompts.context(observation(command)).ids
    text = TOKENIZER.decode(ids[(ids >= 0) & (ids < 512)])
    assert COMMAND_TEXT[command] in text
    assert COMMAND_TEXT[command].isupper()


def test_short_prompt_with_action_tokens_is_short_equally_long_and_exact() -> None:
    prompts = builder()
    contexts = [prompts.context(observation(command)).ids for command in COMMAND_TEXT]
    assert {len(ids) for ids in contexts} == {
        16
    }  # start, image, 3 x 3 history, 2 velocity, 2 acceleration, command
    actions = contexts[0][contexts[0] >= 512] - 512
    # -6 m: (-6 + 100) / 0.05 = 1880; 0.3 m: 2006; -0.05 rad = -2.865 deg: 4000 + 871
    assert actions[:3].tolist() == [1880, 2006, 4871]
    assert actions[-4:].tolist() == [2080, 2000, 2010, 2000]  # velocity (4.0, -0.02), acceleration (0.5, 0.0)
    assert len(prompts.instruction("predict")) <= 4
    assert len(prompts.instruction("predict")) == len(prompts.instruction("refine"))


def test_numbers_outside_the_tables_are_counted() -> None:
    far = dataclasses.replace(observation(), velocity=np.array([130.0, 0.0]))
    history = far.history_poses.copy()
    history[0] = (-150.0, 0.0, np.deg2rad(95.0))
    far = dataclasses.replace(far, history_poses=history)
    assert builder().context(far).num_clipped == 3
    assert builder(pose_format="text").context(far).num_clipped == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history_poses": np.zeros((3, 3))}, r"history_poses must have shape \(4, 3\), got \(3, 3\)"),
        ({"velocity": np.array([np.nan, 0.0])}, "velocity must be finite"),
        ({"driving_command": np.zeros(4, dtype=np.int64)}, "one-hot"),
        ({"driving_command": np.array([1, 0, 0, 1])}, "one-hot"),
    ],
    ids=["history", "velocity", "none", "two"],
)
def test_malformed_observations_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        builder().context(dataclasses.replace(observation(), **changes))


def test_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'plan'.*predict, refine"):
        builder().instruction("plan")


def test_padding_of_contexts() -> None:
    ids, lengths = pad_contexts([np.array([1, 2]), np.array([3, 4, 5])], pad_id=9)
    assert ids.tolist() == [[1, 2, 9], [3, 4, 5]]
    assert lengths.tolist() == [2, 3]
    assert pad_contexts([np.array([1, 2]), np.array([3, 4])], pad_id=9)[1] is None
    ids, lengths = pad_contexts([np.array([1, 2])], pad_id=9, multiple=4)
    assert ids.tolist() == [[1, 2, 9, 9]]
    assert lengths.tolist() == [2]
    assert pad_contexts([np.array([1, 2, 3, 4])], pad_id=9, multiple=4)[1] is None


def test_tiny_tokenizer_encodes_anything_and_knows_its_specials() -> None:
    assert len(TOKENIZER) == DriveFineConfig.tiny().base_vocab_size == 512
    assert [TOKENIZER.id_of(token) for token in SPECIAL_TOKENS] == list(range(6))
    assert TOKENIZER.id_of("<|mdm_mask|>") == DriveFineConfig.tiny().mask_token_id
    for text in ("predict", "+1.23 [TURN LEFT]\n", "Größe 漢字 \x00", "<|eot_id|>"):
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    for text in COMMAND_TEXT.values():
        assert len(TOKENIZER.encode(text)) == 1


def test_text_tokenizer_files(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    assert TextTokenizer.from_file(tmp_path).encode("predict") == TOKENIZER.encode("predict")
    with pytest.raises(DataError, match="no text tokenizer at"):
        TextTokenizer.from_file(tmp_path / "nothing.json")
    with pytest.raises(KeyError, match="must be in the vocabulary, got '<x>'"):
        TOKENIZER.id_of("<x>")
    trained = train_text_tokenizer(["abc abc abc"], vocab_size=300, whole_tokens=["[X]"])
    assert trained.encode("[X]") == [6]
    assert trained.decode(trained.encode("abc é")) == "abc é"
    assert TINY_TOKENIZER_FILE.stat().st_size < 50_000


@pytest.fixture(scope="module")
def planner() -> Planner:
    torch.manual_seed(0)
    model = DriveFineModel(DriveFineConfig.tiny()).eval()
    with torch.no_grad():  # so that the refinement expert differs
        for parameter in model.parameters_of("refinement"):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return Planner(model, TOKENIZER, DecodingOptions(num_steps=4))


def test_planner_returns_trajectories_of_both_experts(planner: Planner) -> None:
    result = planner.plan([observation("left"), observation("right", seed=1)])
    assert result.generated.shape == (2, 1, 8, 3)
    assert result.generated.dtype == np.float64
    assert result.refined is not None
    assert result.refined.shape == (2, 1, 8, 3)
    assert (result.final == result.refined).all()
    assert (planner.action_tokenizer.encode(result.generated) == result.generated_actions).all()
    assert sorted(set(result.step_map.flatten().tolist())) == [0, 1, 2, 3]
    assert (result.generated_log_probs < 0.0).all()
    assert result.num_clipped_inputs.tolist() == [0, 0]
    again = planner.plan([observation("left"), observation("right", seed=1)])
    assert (again.generated == result.generated).all()
    assert (again.refined == result.refined).all()


def test_planner_batch_equals_one_at_a_time_with_text_prompts_of_different_length() -> None:
    torch.manual_seed(0)
    model = DriveFineModel(DriveFineConfig.tiny(pose_format="text", prompt_wording="full")).eval()
    planner = Planner(model, TOKENIZER, DecodingOptions(num_steps=4))
    near, far = observation("left"), observation("straight", seed=1)
    far = dataclasses.replace(far, history_poses=far.history_poses * 20.123)
    contexts = [planner.prompts.context(o).ids for o in (near, far)]
    assert len(contexts[0]) != len(contexts[1])
    together = planner.plan([near, far])
    for i, one in enumerate((near, far)):
        alone = planner.plan([one])
        assert (alone.generated_actions[0] == together.generated_actions[i]).all()
        assert (alone.refined_actions[0] == together.refined_actions[i]).all()


def test_planner_samples_are_reproducible_and_differ(planner: Planner) -> None:
    options = DecodingOptions(num_steps=4, temperature=1.0, num_samples=5)
    results = [planner.plan([observation()], options, seed) for seed in (0, 0, 1)]
    assert results[0].generated.shape == (1, 5, 8, 3)
    assert (results[0].generated == results[1].generated).all()
    assert (results[0].generated != results[2].generated).any()
    assert (results[0].generated[0, 0] != results[0].generated[0, 1]).any()


def test_without_a_refiner_nothing_is_called_refined() -> None:
    model = DriveFineModel(DriveFineConfig.tiny(n_refine=0)).eval()
    result = Planner(model, TOKENIZER, DecodingOptions(num_steps=2)).plan([observation()])
    assert result.refined is None
    assert result.refined_actions is None
    assert (result.final == result.generated).all()


def test_refinement_can_be_switched_off(planner: Planner) -> None:
    result = planner.plan([observation()], DecodingOptions(num_steps=4, refine=False))
    assert result.refined is None


def test_planner_round_trip_through_files(planner: Planner, tmp_path: Path) -> None:
    planner.save_pretrained(tmp_path / "checkpoint")
    loaded = Planner.from_pretrained(tmp_path / "checkpoint", DecodingOptions(num_steps=4))
    assert not loaded.model.training
    ours, theirs = planner.plan([observation()]), loaded.plan([observation()])
    assert (ours.generated == theirs.generated).all()
    assert (ours.refined == theirs.refined).all()
    with pytest.raises(DataError, match=r"config\.json is missing"):
        Planner.from_pretrained(tmp_path / "nowhere")


def test_planner_refuses_nothing_and_mismatched_tokenizers(planner: Planner) -> None:
    with pytest.raises(ValueError, match="observations must be at least one"):
        planner.plan([])
    with pytest.raises(ValueError, match="only 300 rows: they do not belong together"):
        Planner(DriveFineModel(DriveFineConfig.debug()), TOKENIZER)
