"""The prompt's cache is exact: one pass with a mask, cached, packed, one row at a time all agree."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_inputs, make_model, random_actions

from drivefine_agent.answer import AnswerLogits
from drivefine_agent.diffusion.decoding import DecodingOptions, decode
from drivefine_agent.model.backbone.block_moe import segment_mask
from drivefine_agent.model.choices import EXPERTS, Expert

EXACT = 1e-12  # float64; logits are of order 1 to 10

LENGTHS = [None, torch.tensor([11, 7, 9])]
LENGTH_IDS = ["unpadded", "padded"]


def difference(a: AnswerLogits, b: AnswerLogits) -> float:
    return max(float((a.spatial - b.spatial).abs().max()), float((a.heading - b.heading).abs().max()))


@pytest.mark.parametrize("lengths", LENGTHS, ids=LENGTH_IDS)
@pytest.mark.parametrize("expert", EXPERTS)
@pytest.mark.parametrize("overrides", [{}, {"n_refine": 6}, {"slot_restricted": False}], ids=str)
def test_cached_equals_one_pass(overrides: dict, expert: Expert, lengths: torch.Tensor | None) -> None:
    model = make_model(**overrides)
    inputs = make_inputs(model)
    cached = model(*inputs, expert=expert, context_lengths=lengths)
    one_pass = model.one_pass_logits(*inputs, expert=expert, context_lengths=lengths)
    assert float(cached.spatial.detach().abs().max()) > 0.5
    assert difference(cached, one_pass) < EXACT


def test_experts_differ_so_that_the_comparisons_mean_something() -> None:
    model = make_model()
    inputs = make_inputs(model)
    assert difference(model(*inputs), model(*inputs, expert="refinement")) > 0.1


@pytest.mark.parametrize("n_refine", [0, 1, 2, 6])
def test_any_number_of_refinement_blocks_runs(n_refine: int) -> None:
    model = make_model(n_refine=n_refine)
    inputs = make_inputs(model)
    assert difference(model(*inputs), model.one_pass_logits(*inputs)) < EXACT
    if n_refine == 0:
        with pytest.raises(ValueError, match="no refinement expert"):
            model(*inputs, expert="refinement")
    else:
        refined = model(*inputs, expert="refinement")
        assert difference(refined, model.one_pass_logits(*inputs, expert="refinement")) < EXACT


def test_unknown_expert_is_refused() -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"unknown expert 'critic'.*generation, refinement"):
        model(*make_inputs(model), expert="critic")


def test_one_context_serves_both_experts_and_several_instructions() -> None:
    model = make_model()
    tiles, context_ids, instruction_ids, actions = make_inputs(model)
    context = model.encode_context(tiles, context_ids)
    for expert in EXPERTS:
        for instruction in (instruction_ids, instruction_ids.flip(0)[:3]):
            shared = model.answer_logits(model.append_instruction(context, instruction, expert), actions)
            alone = model.one_pass_logits(tiles, context_ids, instruction, actions, expert)
            assert difference(shared, alone) < EXACT


def test_rows_and_scenes_do_not_see_each_other() -> None:
    model = make_model()
    tiles, context_ids, instruction_ids, actions = make_inputs(model)
    together = model(tiles, context_ids, instruction_ids, actions)
    for scene in range(3):
        one = slice(scene, scene + 1)
        for row in range(4):
            alone = model(tiles[one], context_ids[one], instruction_ids, actions[one, row : row + 1])
            picked = AnswerLogits(together.spatial[one, row : row + 1], together.heading[one, row : row + 1])
            assert difference(picked, alone) < EXACT


def test_padding_changes_nothing() -> None:
    model = make_model()
    tiles, context_ids, instruction_ids, actions = make_inputs(model)
    padded = torch.cat([context_ids, torch.full((3, 4), 7)], dim=1)
    for expert in EXPERTS:
        plain = model(tiles, context_ids, instruction_ids, actions, expert)
        masked = model(
            tiles,
            padded,
            instruction_ids,
            actions,
            expert,
            context_lengths=torch.full((3,), context_ids.shape[1]),
        )
        assert difference(plain, masked) < EXACT


def test_answer_attention_is_bidirectional_and_reaches_the_prompt() -> None:
    model = make_model()
    tiles, context_ids, instruction_ids, actions = make_inputs(model)
    before = model(tiles, context_ids, instruction_ids, actions)
    changed = actions.clone()
    changed[..., 21:] = random_actions(model.config, (3, 4), torch.Generator().manual_seed(9))[..., 21:]
    after = model(tiles, context_ids, instruction_ids, changed)
    assert (after.spatial[..., 0, :, :] - before.spatial[..., 0, :, :]).abs().amax((-1, -2)).min() > 1e-4
    for column in (0, 10):  # the first and the last context token, before and after the image
        other = context_ids.clone()
        other[:, column] = (other[:, column] + 1) % 290
        moved = model(tiles, other, instruction_ids, actions)
        assert (moved.spatial - before.spatial).abs().max() > 1e-4
    dark = model(torch.zeros_like(tiles), context_ids, instruction_ids, actions)
    assert (dark.spatial - before.spatial).abs().max() > 1e-4


def test_prompt_states_do_not_depend_on_later_segments() -> None:
    mask = segment_mask(torch.tensor([0, 0, -1, 1, 2, 2, 2, 2]), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]))
    expected = [
        "xx......",
        "xx......",
        "..x.....",  # padding: seen by no one but itself
        "xx.x....",
        "xx.xxx..",
        "xx.xxx..",
        "xx.x..xx",
        "xx.x..xx",
    ]
    assert ["".join("x" if v else "." for v in row) for row in mask.tolist()] == expected


def test_gradients_of_cached_and_one_pass_agree() -> None:
    model = make_model()
    inputs = make_inputs(model)
    gradients = []
    for function in (model, model.one_pass_logits):
        model.zero_grad()
        logits = function(*inputs)
        (logits.spatial.sin().sum() + logits.heading.sin().sum()).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    scale = max(float(g.abs().max()) for g in gradients[1].values())
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).abs().max() < 1e-11 * scale, name


def test_checkpointing_changes_neither_output_nor_gradient() -> None:
    model = make_model().train()
    inputs = make_inputs(model)
    results = []
    for enabled in (False, True):
        model.checkpoint_blocks(enabled)
        for expert in EXPERTS:
            model.zero_grad()
            logits = model(*inputs, expert=expert)
            (logits.spatial.sin().sum() + logits.heading.sin().sum()).backward()
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            results.append((logits, gradients))
    for plain, recomputed in zip(results[:2], results[2:], strict=True):
        assert difference(plain[0], recomputed[0]) < EXACT
        assert len(plain[1]) == len(recomputed[1])
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(plain[1], recomputed[1], strict=True))


def test_reading_only_the_scored_rows_equals_reading_all() -> None:
    model = make_model()
    inputs = make_inputs(model)
    everything = model(*inputs)  # rows 0, 1 are answer 0, rows 2, 3 answer 1
    scored_row = torch.randint(0, 2, (3, 2, 24), generator=torch.Generator().manual_seed(3))
    picked = model(*inputs, scored_row=scored_row)
    for scene in range(3):
        for answer in range(2):
            for slot in range(24):
                row = 2 * answer + int(scored_row[scene, answer, slot])
                pose, field = divmod(slot, 3)
                if field == 2:
                    pair = picked.heading[scene, answer, pose], everything.heading[scene, row, pose]
                else:
                    pair = (
                        picked.spatial[scene, answer, pose, field],
                        everything.spatial[scene, row, pose, field],
                    )
                assert (pair[0] - pair[1]).abs().max() < EXACT


def test_precomputed_visual_tokens_replace_the_tiles() -> None:
    model = make_model()
    tiles, context_ids, instruction_ids, actions = make_inputs(model)
    visual = model.encode_images(tiles)
    from_visual = model(None, context_ids, instruction_ids, actions, visual=visual)
    assert difference(from_visual, model(tiles, context_ids, instruction_ids, actions)) == 0.0


def test_selecting_scenes_of_a_cache() -> None:
    model = make_model()
    tiles, context_ids, instruction_ids, actions = make_inputs(model)
    for lengths in LENGTHS:
        prompt = model.prefill(tiles, context_ids, instruction_ids, context_lengths=lengths)
        index = torch.tensor([2, 0, 2])
        everything = model.answer_logits(prompt, actions)
        selected = model.answer_logits(prompt.select(index), actions[index])
        expected = AnswerLogits(everything.spatial[index], everything.heading[index])
        assert difference(selected, expected) < EXACT


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_and_uncached_decoding_give_identical_tokens(temperature: float) -> None:
    model = make_model(dtype=torch.float32)
    tiles, context_ids, instruction_ids, _ = make_inputs(model)
    prompt = model.prefill(tiles, context_ids, instruction_ids)
    options = DecodingOptions(temperature=temperature, num_samples=5 if temperature else 1)
    with torch.no_grad():
        cached = decode(
            lambda actions: model.answer_logits(prompt, actions),
            3,
            options,
            generator=torch.Generator().manual_seed(4),
        )
        uncached = decode(
            lambda actions: model.one_pass_logits(tiles, context_ids, instruction_ids, actions),
            3,
            options,
            generator=torch.Generator().manual_seed(4),
        )
    assert (cached.actions == uncached.actions).all()
    assert (cached.step_map == uncached.step_map).all()


def test_wrong_inputs_are_refused() -> None:
    model = make_model()
    tiles, context_ids, instruction_ids, actions = make_inputs(model)
    with pytest.raises(ValueError, match=r"expected tiles \(B, \(2, 28, 28, 3\)\)"):
        model(tiles[:, :1], context_ids, instruction_ids, actions)
    with pytest.raises(ValueError, match="hold an image placeholder, got none"):
        model(None, context_ids, instruction_ids, actions)
    two_columns = context_ids.clone()
    two_columns[0, 5] = -200
    with pytest.raises(
        ValueError, match=r"one image placeholder \(-200\) in the same column, got columns \[2, 5\]"
    ):
        model(tiles, two_columns, instruction_ids, actions)
    with pytest.raises(ValueError, match="B = 3 cached prompts"):
        model(tiles, context_ids, instruction_ids, actions[:2])
