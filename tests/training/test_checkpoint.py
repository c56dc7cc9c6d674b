from pathlib import Path

import pytest
import torch
from torch import nn

from drivefine_agent.errors import DataError
from drivefine_agent.training.checkpoint import checkpoints, load_checkpoint, load_state, save_checkpoint
from drivefine_agent.training.optimization import OptimizerConfig, WeightAverage, build_optimizer
from drivefine_agent.training.seeds import derived_seed, generator_for


def _training(width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer, WeightAverage]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(parameters, lambda name: "language", OptimizerConfig(learning_rate=0.1))
    return model, optimizer, WeightAverage(parameters, 0.9)


def _step(training: tuple[nn.Module, torch.optim.Optimizer, WeightAverage], index: int) -> None:
    model, optimizer, average = training
    batch = torch.randn(4, 2, generator=generator_for(0, "batch", index))
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()
    average.update()


def test_resumed_training_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    unbroken = _training()
    for index in range(6):
        _step(unbroken, index)
    first = _training()
    for index in range(3):
        _step(first, index)
    folder = save_checkpoint(tmp_path, "1_generator_3", *first, state={"phase": "sft"})
    resumed = _training()
    load_checkpoint(folder, *resumed)
    assert load_state(folder)["phase"] == "sft"
    for index in range(3, 6):
        _step(resumed, index)
    for one, other in zip(unbroken[0].state_dict().values(), resumed[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for name, value in unbroken[2].state().items():
        assert torch.equal(value, resumed[2].state()[name])


def test_only_complete_and_newest_checkpoints_remain(tmp_path: Path) -> None:
    training = _training()
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, f"1_generator_{step:02d}", *training, state={}, keep=2)
    (tmp_path / ".1_generator_11.part").mkdir()  # a write that was killed
    (tmp_path / "1_generator_12").mkdir()  # no state.json: not ours
    assert [path.name for path in checkpoints(tmp_path)] == ["1_generator_02", "1_generator_10"]


def test_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "1_generator_1", *_training(), state={})
    with pytest.raises(DataError, match="not of this model"):
        load_checkpoint(folder, *_training(width=4))


def test_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "1_generator_1", *_training(), state={})
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match="1_generator_1"):
        load_checkpoint(folder, *_training())


def test_seeds_depend_on_seed_purpose_and_index() -> None:
    seeds = {derived_seed(s, p, i) for s in (0, 1) for p in ("a", "b") for i in (0, 1)}
    assert len(seeds) == 8
    assert derived_seed(0, "a", 0) == derived_seed(0, "a", 0)
    assert all(0 <= seed < 2**63 for seed in seeds)
