"""The engine in one process: accumulation, clipping, rates, errors, and DeepSpeed's settings."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from drivefine_agent.training.optimization import OptimizerConfig
from rl.deepspeed_config import deepspeed_config
from rl.engine import Engine, EngineConfig
from rl.processes import Processes

sys.path.insert(0, str(Path(__file__).parent))
import engine_worker as worker
from engine_worker import Job, loss_of, make_engine, make_planner, make_scenes


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(1)


def _backward(engine: Engine, model: torch.nn.Module, parts: list[np.ndarray], scale: float = 1.0) -> None:
    for i, part in enumerate(parts):
        with engine.accumulate(is_last=i == len(parts) - 1):
            scenes = make_scenes(model, 0, part, ("generator", "refiner"))  # type: ignore[arg-type]
            engine.backward(scale * loss_of(engine(scenes), scenes.advantages) / len(parts))


def test_two_micro_batches_equal_one_batch() -> None:
    losses = [worker.run(Job("single", steps=3, micro_batch_size=size))["losses"] for size in (4, 2, 1)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-6)
    assert losses[2] == pytest.approx(losses[0], abs=2e-6)
    assert losses[0][0] != pytest.approx(losses[0][1], abs=1e-2)


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, saving = (worker.run(Job("single", steps=3, checkpointing=flag)) for flag in (False, True))
    assert saving["losses"] == pytest.approx(plain["losses"], abs=1e-6)
    assert saving["norms"][0] == pytest.approx(plain["norms"][0], rel=1e-5)


def test_gradient_checkpointing_recomputes_every_block() -> None:
    calls = 0
    for wanted in (False, True):
        planner = make_planner()
        engine = make_engine(planner, Job("single", checkpointing=wanted))
        block = planner.model.backbone.layers[0]
        before, calls = calls, 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        block.register_forward_pre_hook(count)
        _backward(engine, planner.model, [np.arange(2)])
    assert calls > before > 0


def test_bfloat16_is_close_to_float32_and_keeps_float32_weights() -> None:
    exact, rounded = (worker.run(Job("single", steps=4, precision=p)) for p in ("float32", "bfloat16"))
    assert rounded["losses"] == pytest.approx(exact["losses"], abs=0.02)
    assert rounded["losses"] != pytest.approx(exact["losses"], abs=1e-6)
    planner = make_planner()
    engine = make_engine(planner, Job("single", precision="bfloat16"))
    assert {value.dtype for value in engine.gather_weights().values()} == {torch.float32}


def test_each_group_is_clipped_by_itself() -> None:
    """AdamW's first moment after one step is (1 - beta1) times the clipped gradient."""
    planner = make_planner()
    engine = make_engine(planner, Job("single", max_grad_norm={"generator": 1e9, "refiner": 1e-3}))
    _backward(engine, planner.model, [np.arange(4)])
    gradients = {
        group: torch.cat([p.grad.flatten() for p in named.values() if p.grad is not None])
        for group, named in engine._trained_by_group().items()
    }
    expected = {"generator": gradients["generator"], "refiner": gradients["refiner"].clone()}
    norms = {group: value.double().norm().item() for group, value in expected.items()}
    expected["refiner"] = expected["refiner"] * 1e-3 / norms["refiner"]
    assert engine.step(1.0) == pytest.approx(norms, rel=1e-5)
    for group, named in engine._trained_by_group().items():
        moments = torch.cat([engine._moments_of(name)["exp_avg"].flatten() for name in named])
        torch.testing.assert_close(moments, 0.1 * expected[group], rtol=1e-3, atol=1e-10)


def test_learning_rates_follow_the_factor_of_each_group() -> None:
    planner = make_planner()
    engine = make_engine(planner, Job("single"))
    before = {name: p.detach().clone() for name, p in engine._trained().items()}
    _backward(engine, planner.model, [np.arange(4)])
    engine.step({"generator": 0.0, "refiner": 1.0})
    moved = {name for name, p in engine._trained().items() if not torch.equal(p, before[name])}
    assert moved
    assert all("refine_layers" in name for name in moved)
    assert all(p.grad is None for p in engine._trained().values())


def test_parameter_without_gradient_counts_as_gradient_zero() -> None:
    """Momentum and weight decay go on moving an expert that rests, as under DeepSpeed."""
    planner = make_planner()
    engine = make_engine(planner, Job("single"))
    _backward(engine, planner.model, [np.arange(4)])
    engine.step(1.0)
    before = {name: p.detach().clone() for name, p in engine._trained().items()}
    with engine.accumulate(is_last=True):
        scenes = make_scenes(planner.model, 1, np.arange(4), ("generator",))
        engine.backward(loss_of(engine(scenes), scenes.advantages))
    assert engine.step(1.0)["refiner"] == 0.0
    resting = [name for name in before if "refine_layers" in name]
    assert not any(torch.equal(engine._trained()[name], before[name]) for name in resting)


def test_what_is_in_no_group_is_frozen() -> None:
    planner = make_planner()
    worker_groups = {name: p for name, p in planner.model.named_parameters() if "refine_layers" in name}
    policy = worker.TwoExperts(planner.model)
    Engine.create(policy, {"refiner": worker_groups}, {"refiner": OptimizerConfig()}, EngineConfig())
    assert {n for n, p in planner.model.named_parameters() if p.requires_grad} == set(worker_groups)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_updates_nothing(where: str) -> None:
    planner = make_planner()
    engine = make_engine(planner, Job("single"))
    before = {name: value.clone() for name, value in engine.gather_weights().items()}
    _backward(engine, planner.model, [np.arange(4)], float("nan") if where == "loss" else 1.0)
    if where == "gradient":
        next(iter(engine._trained().values())).grad.view(-1)[0] = float("inf")  # type: ignore[union-attr]
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        engine.step(1.0)
    assert all(torch.equal(before[name], value) for name, value in engine.gather_weights().items())
    _backward(engine, planner.model, [np.arange(4)])
    assert engine.step(1.0)["generator"] > 0


def test_steps_and_micro_batches_must_come_in_order() -> None:
    planner = make_planner()
    engine = make_engine(planner, Job("single"))
    with pytest.raises(RuntimeError, match="must follow a micro-batch"):
        engine.step(1.0)
    with pytest.raises(RuntimeError, match="call backward inside"):
        engine.backward(torch.zeros((), requires_grad=True))
    with engine.accumulate(is_last=False):
        pass
    with pytest.raises(RuntimeError, match="must follow a micro-batch"):
        engine.step(1.0)
    _backward(engine, planner.model, [np.arange(4)])
    with pytest.raises(RuntimeError, match="call step"), engine.accumulate(is_last=True):
        pass


def test_inference_lends_the_model_without_gradient() -> None:
    planner = make_planner()
    engine = make_engine(planner, Job("single"))
    with engine.inference() as model:
        assert not torch.is_grad_enabled()
        assert not model.training
    assert planner.model.training


def test_groups_are_checked() -> None:
    planner = make_planner()
    policy = worker.TwoExperts(planner.model)
    name, parameter = next(iter(planner.model.named_parameters()))
    one, two = {"a": {name: parameter}}, {"a": {name: parameter}, "b": {name: parameter}}
    config, adamw = EngineConfig(), OptimizerConfig()
    with pytest.raises(ValueError, match="must be disjoint"):
        Engine.create(policy, two, {"a": adamw, "b": adamw}, config)
    with pytest.raises(ValueError, match="needs its optimizer"):
        Engine.create(policy, one, {"b": adamw}, config)
    with pytest.raises(ValueError, match="must have parameters, got none in 'a'"):
        Engine.create(policy, {"a": {}}, {"a": adamw}, config)
    with pytest.raises(ValueError, match="must name parameters of policy"):
        Engine.create(policy, {"a": {"x": torch.nn.Parameter(torch.zeros(1))}}, {"a": adamw}, config)
    with pytest.raises(ValueError, match="muon_learning_rate must be 0"):
        Engine.create(policy, one, {"a": OptimizerConfig(muon_learning_rate=0.1)}, config)


def test_single_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"single is a run of one process, but torchrun started 2"):
        make_engine(make_planner(), Job("single"))


@pytest.mark.parametrize("backend", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_several_processes_without_torchrun_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match=rf"torchrun --nproc_per_node 2 .* engine\.backend={backend}"):
        make_engine(make_planner(), Job(backend))


def test_share_is_equal_parts_in_order() -> None:
    planner = make_planner()
    engine = make_engine(planner, Job("single"))
    index = np.array([7, 5, 3, 1, 0, 2])
    for world_size, parts in ((1, [[7, 5, 3, 1, 0, 2]]), (3, [[7, 5], [3, 1], [0, 2]])):
        for rank, part in enumerate(parts):
            engine.processes = Processes(rank, world_size, 0, 1.0)
            assert engine.share(index).tolist() == part
    engine.processes = Processes(0, 4, 0, 1.0)
    with pytest.raises(ValueError, match="batch_size 6 is no multiple of 4 processes"):
        engine.share(index)


def test_mean_of_one_process() -> None:
    engine = make_engine(make_planner(), Job("single"))
    assert engine.mean({"a": 2.0, "b": 3.0}, {"b": 4.0}) == {"a": 2.0, "b": 3.0}
    assert np.isnan(engine.mean({"a": 2.0}, {"a": 0.0})["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"timeout_s": 0.0}, "timeout_s"), ({"device": "tpu"}, "device"), ({"device": "meta"}, "cpu or cuda")],
)
def test_impossible_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        EngineConfig(**change)  # type: ignore[arg-type]


def test_deepspeed_settings_leave_no_dangerous_default() -> None:
    for stage in (1, 2, 3):
        for precision in ("float32", "bfloat16"):
            settings = deepspeed_config(f"zero{stage}", precision, persistence_threshold=7)
            assert settings["zero_optimization"]["stage"] == stage
            assert settings["gradient_clipping"] == 0.0  # absent, it would be 1.0
            assert settings["gradient_accumulation_steps"] == 1
            assert settings["bf16"]["enabled"] == (precision == "bfloat16")
            assert not settings["fp16"]["enabled"]
            json.dumps(settings)
    assert (
        deepspeed_config("zero3", "float32", persistence_threshold=7)["zero_optimization"][
            "stage3_param_persistence_threshold"
        ]
        == 7
    )
    assert deepspeed_config("zero2", "bfloat16")["data_types"] == {"grad_accum_dtype": "fp32"}
    with pytest.raises(ValueError, match="zero4"):
        deepspeed_config("zero4", "float32")
    with pytest.raises(ValueError, match="float16"):
        deepspeed_config("zero2", "float16")
