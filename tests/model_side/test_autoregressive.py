"""Left-to-right decoding with a growing cache equals the same without any cache."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_inputs, make_model

from drivefine_agent.actions import MASKED
from drivefine_agent.baselines.autoregressive import decode_autoregressively
from drivefine_agent.model.backbone.block_moe import segment_mask


@pytest.mark.parametrize("learned_positions", [False, True])
def test_growing_cache_equals_teacher_forcing_under_a_causal_mask(learned_positions: bool) -> None:
    model = make_model(learned_positions=learned_positions)
    tiles, context_ids, instruction_ids, _ = make_inputs(model)
    with torch.no_grad():
        prompt = model.prefill(tiles, context_ids, instruction_ids)
        answer = decode_autoregressively(model, prompt)
        # All 24 tokens at once: slot l sees the prompt, the start token and slots 0 .. l - 1.
        shifted = torch.cat([torch.full((3, 1), MASKED), answer[:, :-1]], dim=1)
        context = model.embed_context(context_ids, model.encode_images(tiles))
        instruction = model.embeddings(instruction_ids).expand(3, -1, -1)
        embedded = torch.cat([context, instruction, model.embeddings.answer(shifted)], dim=1)
        num_context, num_prompt = context.shape[1], context.shape[1] + instruction.shape[1]
        segments = torch.cat([torch.zeros(num_context), torch.ones(5), torch.full((24,), 2)]).long()
        mask = segment_mask(segments, torch.zeros_like(segments))
        mask[num_prompt:, num_prompt:] = torch.ones(24, 24).tril().bool()
        hidden = model.backbone.one_pass(embedded, torch.arange(len(segments))[None], mask[None])
        expected = model.heads(hidden[:, num_prompt:]).best()
    assert torch.equal(answer, expected)
    assert len(answer.unique()) > 20  # not one token over and over


def test_padded_prompts_are_written_to_as_single_ones() -> None:
    model = make_model()
    tiles, context_ids, instruction_ids, _ = make_inputs(model)
    lengths = torch.tensor([11, 7, 9])
    with torch.no_grad():
        together = decode_autoregressively(
            model, model.prefill(tiles, context_ids, instruction_ids, context_lengths=lengths)
        )
        for scene, length in enumerate(lengths.tolist()):
            one = slice(scene, scene + 1)
            alone = model.prefill(tiles[one], context_ids[one, :length], instruction_ids)
            assert torch.equal(decode_autoregressively(model, alone), together[one])
