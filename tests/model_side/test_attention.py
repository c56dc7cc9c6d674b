"""Attention kernels agree with the formula; answer rows share a long prompt; recomputation saves memory."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import make_inputs, make_model, random_actions
from torch import Tensor

from drivefine_agent.actions import MASKED
from drivefine_agent.model.backbone import block_moe
from drivefine_agent.model.backbone.attention import ATTENTIONS, AttentionName, attend, kernel_mask
from drivefine_agent.model.choices import EXPERTS, IMAGE_PLACEHOLDER, Expert
from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.model.memory import TensorMemory

LONG_TEXT = 300  # more than SHORT_PROMPT
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])]


def long_inputs(
    model: DriveFineModel, num_scenes: int, num_rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tiles, a long context, an instruction and half-masked answers."""
    generator = torch.Generator().manual_seed(5)
    short = make_inputs(model, num_scenes=num_scenes)
    context_ids = torch.randint(0, 290, (num_scenes, LONG_TEXT), generator=generator)
    context_ids[:, 2] = IMAGE_PLACEHOLDER
    actions = random_actions(model.config, (num_scenes, num_rows), generator)
    is_masked = torch.rand(actions.shape, generator=generator) < 0.5
    return short.tiles, context_ids, short.instruction_ids, torch.where(is_masked, MASKED, actions)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("is_masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("num_kv_heads", [4, 2])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_kernel_computes_the_formula(
    attention: AttentionName, num_kv_heads: int, is_masked: bool, device: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 4, 24, 16, generator=generator).to(device)
    keys, values = (torch.randn(2, num_kv_heads, 150, 16, generator=generator).to(device) for _ in range(2))
    visible = None
    if is_masked:
        visible = torch.rand(2, 1, 24, 150, generator=generator).to(device) < 0.5
    with torch.no_grad():
        got = attend(queries, keys, values, kernel_mask(visible, 24, attention), attention)
    for n in range(2):
        for head in range(4):
            group = head * num_kv_heads // 4
            scores = queries[n, head].double() @ keys[n, group].double().T / math.sqrt(16)
            if visible is not None:
                scores[~visible[n, 0]] = -torch.inf
            expected = scores.softmax(-1) @ values[n, group].double()
            assert (got[n, head] - expected).abs().max() < 2e-6 if device == "cpu" else 2e-3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("lengths", [None, [300, 271]], ids=["unpadded", "padded"])
@pytest.mark.parametrize("attention", ["flash", "flex"])
def test_the_model_answers_the_same_with_every_kernel(
    attention: AttentionName, lengths: list[int] | None, num_rows: int, device: str
) -> None:
    model = make_model(dtype=torch.float32).to(device)
    inputs = [tensor.to(device) for tensor in long_inputs(model, 2, num_rows)]
    context_lengths = None if lengths is None else torch.tensor(lengths, device=device)
    for expert in EXPERTS:
        with torch.no_grad():
            model.use_attention("sdpa")
            plain = model(*inputs, expert=expert, context_lengths=context_lengths)
            model.use_attention(attention)
            other = model(*inputs, expert=expert, context_lengths=context_lengths)
        assert (plain.spatial - other.spatial).abs().max() < 2e-4  # float32, logits of order 10
        assert (plain.heading - other.heading).abs().max() < 2e-4


def test_unknown_kernels_and_flex_training_on_the_cpu_are_refused() -> None:
    model = make_model(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"unknown attention 'eager'.*sdpa, flash, flex"):
        model.use_attention("eager")  # type: ignore[arg-type]
    model.use_attention("flex")
    with pytest.raises(ValueError, match="no backward pass on the CPU"):
        model(*make_inputs(model))


@pytest.mark.parametrize("expert", EXPERTS)
@pytest.mark.parametrize("lengths", [None, [300, 271]], ids=["unpadded", "padded"])
def test_rows_behind_one_long_prompt_equal_rows_with_a_copy_each(
    expert: Expert, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    inputs = long_inputs(model, 2, 5)
    context_lengths = None if lengths is None else torch.tensor(lengths)
    results = []
    for longest_copied in (0, 10_000):
        monkeypatch.setattr(block_moe, "SHORT_PROMPT", longest_copied)
        model.zero_grad()
        logits = model(*inputs, expert=expert, context_lengths=context_lengths)
        (logits.spatial.sin().sum() + logits.heading.sin().sum()).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((logits.spatial.detach(), logits.heading.detach(), *gradients))
    shared, copied = results
    assert len(shared) == len(copied)
    scale = max(float(tensor.abs().max()) for tensor in copied[2:])
    assert all((a - b).abs().max() < 1e-11 * max(1.0, scale) for a, b in zip(shared, copied, strict=True))


@pytest.mark.parametrize("with_gradient", [False, True])
def test_a_long_prompt_is_never_copied_for_each_row(
    with_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_rows = 8
    model = make_model(dtype=torch.float32)
    tiles, context_ids, instruction_ids, actions = long_inputs(model, 1, num_rows)
    with torch.set_grad_enabled(with_gradient):
        prompt = model.prefill(tiles, context_ids, instruction_ids)
        embedded = model.embeddings.answer(actions)
        measured = []
        for longest_copied in (0, 10_000):
            monkeypatch.setattr(block_moe, "SHORT_PROMPT", longest_copied)
            with TensorMemory() as memory:
                model.backbone.answer(prompt, embedded)
            measured.append(memory)
    shared, copied = measured
    keys = prompt.blocks[0].keys  # (1, K, P, E)
    bytes_of_copies = num_rows * keys.numel() * keys.element_size()
    assert copied.largest >= bytes_of_copies  # so that the next line can fail
    assert shared.largest < bytes_of_copies
    assert shared.peak < 0.75 * copied.peak  # the rest: masks, and the rows' own states


def test_recomputing_blocks_through_the_prompt_cache_saves_memory() -> None:
    model = make_model(dtype=torch.float32).train()
    inputs = long_inputs(model, 1, 4)
    peaks = []
    for enabled in (False, True):
        model.checkpoint_blocks(enabled)
        model.zero_grad()
        with TensorMemory() as memory:
            logits = model(*inputs)
            (logits.spatial.sin().sum() + logits.heading.sin().sum()).backward()
        peaks.append(memory.peak)
    assert peaks[1] < 0.5 * peaks[0]  # 6 blocks: their inputs and one block's working set


def test_memory_counts_what_is_alive() -> None:
    before = torch.ones(1000)
    with TensorMemory() as memory:
        view = before.view(10, 100)  # nothing new
        assert memory.now == 0
        doubled = view * 2  # 4,000 bytes
        total = (doubled + 1).sum()  # 4,000 more for a moment, and 4
        del doubled
    assert (memory.peak, memory.now, memory.largest) == (8004, 4, 4000)
    assert float(total) == 3000.0
