import math

import pytest
import torch
from torch import nn

from drivefine_agent.training.optimization import (
    OptimizerConfig,
    WeightAverage,
    build_optimizer,
    learning_rate_factor,
    optimizer_step,
    set_learning_rate,
)


def test_schedule_rises_to_the_peak_and_falls_along_a_cosine() -> None:
    factors = [learning_rate_factor(i, 100, warmup_share=0.1, final_share=0.0) for i in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)  # half way between the warm-up's end and the end
    assert factors[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_schedule_ends_above_the_final_share() -> None:
    assert learning_rate_factor(999, 1000, 0.0, 0.1) == pytest.approx(0.1, abs=1e-4)


def test_groups_get_their_rates_and_only_language_matrices_decay() -> None:
    model = nn.ModuleDict(
        {"language": nn.Linear(2, 2), "vision": nn.Linear(2, 2), "action": nn.Embedding(2, 2)}
    )
    config = OptimizerConfig(learning_rate=1e-3, vision_factor=0.1, action_factor=5.0, weight_decay=0.01)
    optimizer = build_optimizer(dict(model.named_parameters()), lambda name: name.split(".")[0], config)
    found = {name: (g["peak_lr"], g["weight_decay"]) for g in optimizer.param_groups for name in g["names"]}
    assert found == {
        "language.weight": (1e-3, 0.01),
        "language.bias": (1e-3, 0.0),
        "vision.weight": (pytest.approx(1e-4), 0.01),
        "vision.bias": (pytest.approx(1e-4), 0.0),
        "action.weight": (pytest.approx(5e-3), 0.0),
    }
    set_learning_rate(optimizer, 0.5)
    assert {g["lr"] / g["peak_lr"] for g in optimizer.param_groups} == {0.5}


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    names = ["layers.0.mlp.weight", "layers.0.norm.weight", "layers.0.mlp.bias", "embed.weight"]
    shapes = [(4, 2), (4,), (4,), (4, 2)]
    parameters = {n: nn.Parameter(torch.zeros(s)) for n, s in zip(names, shapes, strict=True)}
    config = OptimizerConfig(learning_rate=1e-3, muon_learning_rate=2e-2)
    optimizer = build_optimizer(parameters, lambda name: "language", config)
    found = {name: g["peak_lr"] for g in optimizer.param_groups for name in g["names"]}
    assert found == dict(zip(names, [2e-2, 1e-3, 1e-3, 1e-3], strict=True))


def test_muon_steps_along_the_orthogonalised_gradient() -> None:
    """A rank-one gradient u v' of any size gives the step -rate * 0.2 sqrt(4) * c u v' of the unit vectors.

    0.2 sqrt(longer side) is the scale that matches AdamW's root mean square; c, the singular value that the
    Newton-Schulz iteration leaves, lies between 0.68 and 1.13 by its design. The table takes AdamW's step.
    """
    matrix, table = nn.Parameter(torch.zeros(4, 2)), nn.Parameter(torch.zeros(4, 2))
    parameters = {"layers.0.weight": matrix, "embed.weight": table}
    config = OptimizerConfig(learning_rate=0.1, muon_learning_rate=0.1)
    optimizer = build_optimizer(parameters, lambda name: "language", config)
    u, v = torch.tensor([0.5, -0.5, 0.5, 0.5]), torch.tensor([0.6, 0.8])
    loss = 7.0 * (torch.outer(u, v) * (matrix + table)).sum()
    optimizer_step(loss, optimizer, WeightAverage(parameters, 0.0), max_grad_norm=1.0)
    step = -(u @ matrix.detach() @ v).item()
    assert 0.1 * 0.2 * 2 * 0.68 < step < 0.1 * 0.2 * 2 * 1.13
    assert torch.allclose(
        matrix.detach(), -step * torch.outer(u, v), atol=1e-3
    )  # Newton-Schulz runs in bfloat16
    assert torch.allclose(table.detach(), -0.1 * torch.outer(u, v).sign(), atol=1e-5)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="parameters must be given"):
        build_optimizer({}, lambda name: "language", OptimizerConfig())


def test_a_step_follows_the_clipped_gradient() -> None:
    """loss = 3 w: gradient 3, clipped to 1; AdamW's first step is the rate times the gradient's sign."""
    weight = nn.Parameter(torch.tensor([2.0]))
    config = OptimizerConfig(learning_rate=0.1)
    optimizer = build_optimizer({"w": weight}, lambda name: "language", config)
    average = WeightAverage({"w": weight}, 0.0)
    norm = optimizer_step((3 * weight).sum(), optimizer, average, max_grad_norm=1.0)
    assert norm == pytest.approx(3.0)
    assert weight.grad.item() == pytest.approx(1.0, abs=1e-5)
    assert weight.item() == pytest.approx(1.9)
    assert average.state()["w"].item() == pytest.approx(1.9)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(factor: float) -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer({"w": weight}, lambda name: "language", OptimizerConfig())
    with pytest.raises(FloatingPointError, match="must be finite"):
        optimizer_step((factor * weight).sum(), optimizer, WeightAverage({"w": weight}, 0.0), 1.0)
    assert weight.item() == 2.0


@pytest.mark.parametrize("change", [{"learning_rate": 0.0}, {"warmup_share": 1.5}, {"action_factor": -1.0}])
def test_impossible_settings_are_refused_by_name(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        OptimizerConfig(**change)


def test_average_follows_its_formula_and_swaps_back() -> None:
    """decay = min(0.5, (1 + n) / (10 + n)): 2/11 at n = 1, 3/12 at n = 2."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(dict(model.named_parameters()), decay=0.5)
    for value in (2.0, 3.0):
        nn.init.constant_(model.weight, value)
        average.update()
    first = 1.0 * 2 / 11 + 2.0 * 9 / 11
    expected = first * 0.25 + 3.0 * 0.75
    assert average.state()["weight"].item() == pytest.approx(expected)
    average.swap()
    assert model.weight.item() == pytest.approx(expected)
    average.swap()
    assert model.weight.item() == 3.0


def test_no_decay_keeps_the_last_iterate() -> None:
    model = nn.Linear(1, 1)
    average = WeightAverage(dict(model.named_parameters()), decay=0.0)
    nn.init.constant_(model.weight, 5.0)
    average.update()
    assert torch.equal(average.state()["weight"], model.weight)
