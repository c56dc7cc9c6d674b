"""What makes decoding fast leaves its tokens alone: prompt cache, compiled step; 8-bit weights nearly so."""

from __future__ import annotations

import importlib.util
import logging
import sys

import pytest
import torch
from tiny_models import make_inputs, make_model
from torch import Tensor

from drivefine_agent.diffusion.decoding import DecodingOptions, decode, read_out
from drivefine_agent.diffusion.schedule import SCHEDULES
from drivefine_agent.errors import MissingPackageError
from drivefine_agent.model.compiled_step import CompiledStep
from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.model.quantization import quantize
from drivefine_agent.planner import PlanTokens, plan_tokens

BATCHES = {"one scene": None, "padded scenes": [11, 7, 9]}
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NEEDS_TORCHAO = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed (drivefine[quantization])"
)


def inputs_of(
    model: DriveFineModel, lengths: list[int] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Tiles, context, two instructions, lengths."""
    tiles, context_ids, instruction_ids, _ = make_inputs(model, num_scenes=1 if lengths is None else 3)
    refine_ids = instruction_ids.flip(0)[:3]
    padded = None if lengths is None else torch.tensor(lengths)
    return tiles, context_ids, instruction_ids, refine_ids, padded


def assert_equal(a: PlanTokens, b: PlanTokens) -> None:
    assert torch.equal(a.trace.actions, b.trace.actions)
    assert torch.equal(a.trace.step_map, b.trace.step_map)
    assert (a.refined_actions is None) == (b.refined_actions is None)
    if a.refined_actions is not None and b.refined_actions is not None:
        assert torch.equal(a.refined_actions, b.refined_actions)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("n_refine", [0, 1, 2, 6])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cached_plans_equal_uncached_ones_token_by_token(schedule: str, n_refine: int, batch: str) -> None:
    model = make_model(n_refine=n_refine)
    tiles, context_ids, predict_ids, refine_ids, lengths = inputs_of(model, BATCHES[batch])

    def uncached(instruction: Tensor, actions: Tensor, expert: str = "generation") -> Tensor:
        return model.one_pass_logits(tiles, context_ids, instruction, actions, expert, lengths)

    for num_steps in (1, 12):
        options = DecodingOptions(num_steps=num_steps, schedule=schedule)
        cached = plan_tokens(model, tiles, context_ids, predict_ids, refine_ids, options, lengths)
        with torch.no_grad():
            trace = decode(lambda actions: uncached(predict_ids, actions), len(tiles), options)
            refined = None
            if n_refine > 0:
                refined = read_out(uncached(refine_ids, trace.actions, "refinement"), options)
        assert_equal(cached, PlanTokens(trace, refined))


def check_compiled(model: DriveFineModel, backend: str, lengths: list[int] | None) -> None:
    tiles, context_ids, predict_ids, refine_ids, padded = inputs_of(model, lengths)
    step = CompiledStep(model, backend)
    options = DecodingOptions(num_steps=6)
    for shift in range(2):  # the second prompt must replace the first in its buffers
        prompt = (context_ids.roll(shift, 0) + shift).masked_fill(context_ids == -200, -200)
        arguments = [x.to(model.device) for x in (tiles, prompt, predict_ids, refine_ids)]
        padded = None if padded is None else padded.to(model.device)
        eager = plan_tokens(model, *arguments, options, padded)
        compiled = plan_tokens(model, *arguments, options, padded, step=step)
        assert step.is_compiled
        assert_equal(eager, compiled)


def test_the_step_is_one_graph_with_static_shapes_and_gives_the_same_tokens() -> None:
    check_compiled(make_model(dtype=torch.float32, n_refine=1), "eager", BATCHES["padded scenes"])


@pytest.mark.slow
def test_a_step_compiled_to_machine_code_gives_the_same_tokens() -> None:
    check_compiled(make_model(dtype=torch.float32, n_refine=1), "inductor", None)


@pytest.mark.gpu
@NEEDS_CUDA
def test_a_step_as_a_cuda_graph_gives_the_same_tokens() -> None:
    check_compiled(make_model(dtype=torch.float32).to("cuda"), "inductor", BATCHES["padded scenes"])


def test_where_compilation_fails_decoding_goes_on_without_it(caplog: pytest.LogCaptureFixture) -> None:
    def no_compiler(graph: object, example_inputs: object) -> object:
        raise RuntimeError("no C++ compiler found")

    model = make_model(dtype=torch.float32)
    arguments = inputs_of(model, None)[:4]
    step = CompiledStep(model, no_compiler)
    with caplog.at_level(logging.WARNING, "drivefine_agent"):
        plans = [plan_tokens(model, *arguments, DecodingOptions(num_steps=3), step=step) for _ in range(2)]
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("drivefine_agent")]
    assert len(messages) == 1
    assert "compile=true does not work here and is ignored" in messages[0]
    assert "no C++ compiler found" in messages[0]
    assert_equal(plans[0], plan_tokens(model, *arguments, DecodingOptions(num_steps=3)))
    assert_equal(plans[0], plans[1])


@NEEDS_TORCHAO
@pytest.mark.parametrize(("name", "largest_error"), [("int8", 0.01), ("fp8", 0.05)])
def test_eight_bit_weights_are_near_the_others_and_take_the_place_of_half_the_bytes(
    name: str, largest_error: float
) -> None:
    model = make_model(dtype=torch.bfloat16)
    inputs = make_inputs(model)
    with torch.no_grad():
        expected = model(*inputs).spatial
        quantize(model, name)  # type: ignore[arg-type]
        got = model(*inputs).spatial
    weight = model.backbone.layers[0].mlp.up_proj.weight
    assert sum(part.numel() * part.element_size() for part in _parts(weight)) < 0.6 * 2 * weight.numel()
    assert 0 < (got - expected).square().mean() < largest_error * expected.square().mean()


def _parts(weight: Tensor) -> list[Tensor]:
    names, _ = weight.__tensor_flatten__()  # type: ignore[attr-defined]
    return [getattr(weight, name) for name in names]


def test_quantization_without_its_package_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    model = make_model()
    with pytest.raises(MissingPackageError, match=r"int8 needs the package torchao.*pip install torchao"):
        quantize(model, "int8")
    with pytest.raises(ValueError, match="unknown quantization 'int4'"):
        quantize(model, "int4")  # type: ignore[arg-type]
