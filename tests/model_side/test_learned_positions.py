"""Learned marks of places, for small models trained from scratch."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_inputs, make_model

from drivefine_agent.actions import MASKED


def test_marks_reach_tokens_slots_and_pixels_and_keep_the_cache_exact() -> None:
    model = make_model(learned_positions=True)
    inputs = make_inputs(model)
    for expert in ("generation", "refinement"):
        cached, one_pass = model(*inputs, expert=expert), model.one_pass_logits(*inputs, expert=expert)
        assert (cached.spatial - one_pass.spatial).abs().max() < 1e-12
    model(*inputs).spatial.sin().sum().backward()
    for name in ("embeddings.context_positions", "embeddings.answer_positions", "projector.positions"):
        assert model.get_parameter(name).grad.abs().max() > 0, name


def test_marks_tell_masked_slots_apart_before_any_attention() -> None:
    masked = torch.full((1, 1, 24), MASKED)
    plain, marked = (
        make_model().embeddings.answer(masked),
        make_model(learned_positions=True).embeddings.answer(masked),
    )
    assert (plain[0, 0] == plain[0, 0, 0]).all()
    assert len(torch.unique(marked[0, 0], dim=0)) == 24


def test_a_context_longer_than_the_table_is_refused() -> None:
    model = make_model(learned_positions=True)
    with pytest.raises(ValueError, match=r"512 ids \(max_position_embeddings\), got 513"):
        model.embeddings.context(torch.zeros(1, 513, dtype=torch.long))
