"""The autoregressive baseline: what it sees, and that cached, teacher-forced and uncached agree."""

from __future__ import annotations

import pytest
import torch
from tiny_models import Inputs, make_inputs, make_model, random_actions

from drivefine_agent.autoregressive import decode_autoregressively
from drivefine_agent.diffusion.decoding import DecodingOptions
from drivefine_agent.model.backbone import block_moe
from drivefine_agent.model.drivefine_model import DriveFineModel, shifted

SAMPLES = DecodingOptions(temperature=1.0, num_samples=3, refine=False)


def causal_model(**overrides: object) -> DriveFineModel:
    return make_model(decoder_type="autoregressive", n_refine=0, **overrides)


def complete_rows(model: DriveFineModel, seed: int = 5) -> torch.Tensor:
    return random_actions(model.config, (3, 4), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("learned_positions", [False, True])
@pytest.mark.parametrize("lengths", [None, torch.tensor([11, 7, 9])])
def test_a_growing_cache_writes_what_one_uncached_pass_says(
    learned_positions: bool, lengths: torch.Tensor | None
) -> None:
    model = causal_model(learned_positions=learned_positions)
    tiles, context_ids, instruction_ids, _ = make_inputs(model)
    with torch.no_grad():
        prompt = model.prefill(tiles, context_ids, instruction_ids, context_lengths=lengths)
        greedy = decode_autoregressively(model, prompt, DecodingOptions(refine=False))
        trace = decode_autoregressively(model, prompt, SAMPLES, torch.Generator().manual_seed(2))
        inputs = (tiles, context_ids, instruction_ids)
        said = model.one_pass_logits(*inputs, greedy.actions, context_lengths=lengths)
        of_samples = model.one_pass_logits(*inputs, trace.actions, context_lengths=lengths)
    assert torch.equal(greedy.actions, said.best())
    assert len(greedy.actions.unique()) > 20  # not one token over and over
    assert len({tuple(row) for row in trace.actions.flatten(0, 1).tolist()}) == 9
    # Log-probabilities are kept in float32.
    torch.testing.assert_close(
        trace.log_probs, of_samples.log_probs(trace.actions).float(), rtol=1e-6, atol=1e-6
    )
    assert trace.step_map[0, 0].tolist() == list(range(24))


@pytest.mark.parametrize("short_prompt", [256, 0])
@pytest.mark.parametrize("lengths", [None, torch.tensor([11, 7, 9])])
def test_teacher_forcing_and_the_growing_cache_equal_one_uncached_pass(
    short_prompt: int, lengths: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with copies of the prompt (short ones) and rows that share it (long ones)."""
    monkeypatch.setattr(block_moe, "SHORT_PROMPT", short_prompt)
    model = causal_model()
    tiles, context_ids, instruction_ids, _ = make_inputs(model)
    rows = complete_rows(model)
    with torch.no_grad():
        prompt = model.prefill(tiles, context_ids, instruction_ids, context_lengths=lengths)
        cached = model.answer_logits(prompt, rows)
        uncached = model.one_pass_logits(tiles, context_ids, instruction_ids, rows, context_lengths=lengths)
        past, newest = (), []
        for slot in range(24):
            token = model.embeddings.answer(shifted(rows)[:, :, slot : slot + 1], slot)
            hidden, past = model.backbone.next_token(prompt, token, past)
            newest.append(hidden[:, :, 0])
        token_by_token = model.logits_of(torch.stack(newest, dim=2))
    assert cached.spatial.dtype == torch.float64
    torch.testing.assert_close(token_by_token.spatial, uncached.spatial, rtol=0, atol=1e-10)
    torch.testing.assert_close(token_by_token.heading, uncached.heading, rtol=0, atol=1e-10)
    torch.testing.assert_close(cached.spatial, uncached.spatial, rtol=0, atol=1e-10)
    torch.testing.assert_close(cached.heading, uncached.heading, rtol=0, atol=1e-10)


def test_a_slot_depends_on_earlier_slots_of_its_row_alone() -> None:
    model = causal_model()
    inputs: Inputs = make_inputs(model)
    rows, other = complete_rows(model), complete_rows(model, seed=6)
    edited = rows.clone()
    edited[:, 1, 9:] = other[:, 1, 9:]  # from x of pose 3 on
    with torch.no_grad():
        prompt = model.prefill(*inputs[:3])
        before, after = model.answer_logits(prompt, rows), model.answer_logits(prompt, edited)
    is_equal = (before.log_probs(rows) == after.log_probs(rows)).all(dim=0)  # (4, 24)
    assert is_equal[[0, 2, 3]].all()
    assert is_equal[1, :10].all()  # slot 9 itself is predicted from slots 0 .. 8
    assert not is_equal[1, 10:].any()


def test_a_baseline_with_a_refinement_expert_is_refused() -> None:
    with pytest.raises(ValueError, match="has no refinement expert: n_refine must be 0, got 2"):
        make_model(decoder_type="autoregressive")
