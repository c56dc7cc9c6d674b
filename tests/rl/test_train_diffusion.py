"""Policy gradient of the diffusion-head baseline: its loss by hand, and a run with the real scorer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from drivefine_agent.baselines.diffusion_head import DiffusionHead
from drivefine_agent.errors import DataError
from drivefine_agent.planner import Planner
from drivefine_agent.training.config import ModelChoice
from drivefine_agent.training.from_mapping import from_mapping
from drivefine_agent.training.model_choice import build_planner
from rl import train_diffusion, train_grpo
from rl.config import TrainGRPOConfig
from rl.diffusion import (
    DiffusionObjectiveConfig,
    TrainDiffusionConfig,
    diffusion_loss,
    standard_advantages,
)

SPLIT = "synth_one_stage"


def test_advantages_are_z_scores_of_the_valid_rewards() -> None:
    rewards = torch.tensor([[0.1, 0.5, 0.9, 7.0], [0.3, 0.3, 0.3, 0.3], [0.2, 9.0, 9.0, 9.0]])
    is_valid = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    third = 1.5**0.5  # 0.4 over the standard deviation sqrt(0.32 / 3)
    wanted = torch.tensor([[-third, 0.0, third, 0.0], [0.0] * 4, [0.0] * 4])
    torch.testing.assert_close(standard_advantages(rewards, is_valid), wanted)


def test_the_loss_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)  # 3 samples, 2 imitated ones
    log_probs = (
        torch.randn(2, 5, 4, 8, 3, generator=generator, dtype=torch.float64) * 4
    )  # 3 samples, 2 imitated
    advantages = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.0, -2.0]]).double()
    is_valid = torch.tensor([[True, True, False], [True, True, True]])
    config = DiffusionObjectiveConfig(discount=0.5, imitation=0.1)
    loss = diffusion_loss(log_probs, advantages, is_valid, config)
    total, count = 0.0, 0
    for scene in range(2):
        for sample in range(3):
            if not is_valid[scene, sample]:
                continue
            count += 1
            for step in range(4):
                numbers = [min(2.0, max(-5.0, x)) for x in log_probs[scene, sample, step].flatten().tolist()]
                discount = 0.5 ** (3 - step)
                total -= sum(numbers) / 24 * discount * float(advantages[scene, sample]) / 4
    imitation = -float(log_probs[:, 3:].mean())
    assert float(loss.policy) == pytest.approx(total / count, rel=1e-12)
    assert float(loss.imitation) == pytest.approx(imitation, rel=1e-12)
    assert float(loss.total) == pytest.approx(total / count + 0.1 * imitation, rel=1e-12)


def test_equal_rewards_have_no_gradient_and_better_samples_become_likelier() -> None:
    log_probs = torch.zeros(1, 2, 3, 8, 3, requires_grad=True)
    config, is_valid = DiffusionObjectiveConfig(), torch.ones(1, 2, dtype=torch.bool)
    for rewards in ([[0.4, 0.4]], [[0.1, 0.7]]):
        advantages = standard_advantages(torch.tensor(rewards), is_valid)
        (gradient,) = torch.autograd.grad(
            diffusion_loss(log_probs, advantages, is_valid, config).total, log_probs
        )
        if rewards == [[0.4, 0.4]]:
            assert not gradient.any()
    assert (gradient[0, 0] > 0).all()  # minimising makes the worse one less likely,
    assert (gradient[0, 1] < 0).all()  # and the better one likelier,
    by_step = gradient[0, 1, :, 0, 0]
    torch.testing.assert_close(by_step[0] / by_step[2], torch.tensor(0.36))  # early steps less: 0.6^2


@pytest.fixture
def settings(image_dataset: Path, scene_cache: Path, tmp_path: Path) -> dict[str, Any]:
    overrides = {"pose_format": "text", "prompt_wording": "short"}
    planner = build_planner(ModelChoice("debug", overrides, decoder="diffusion_head"), seed=0)
    with torch.no_grad():  # a head as new says that there is no noise: trajectories of maximal length
        for name, parameter in planner.model.named_parameters():
            if name.startswith("pose_head"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    planner.save_pretrained(tmp_path / "start")
    return {
        "output_dir": str(tmp_path / "run"),
        "checkpoint_path": str(tmp_path / "start"),
        "metric_cache_path": str(scene_cache),
        "dataset_root": str(image_dataset),
        "train_test_split": SPLIT,
        "allow_test_split": True,  # its logs lie in the folder of test logs
        "i_train_on_test_tokens_of": SPLIT,
        "max_scenes": 4,
        "tile_cache_path": str(tmp_path.parent / "tiles"),
        "rollout": {"num_samples": 4, "num_imitated": 2},
        "reward": {"progress_weight": 10.0},
        "head_optimizer": {"learning_rate": 1e-3},
        "run": {"num_threads": 1, "batch_size": 2, "micro_batch_scenes": 1, "checkpoint_every": 1},
    }


def test_a_run_trains_the_head_alone_and_goes_on_where_it_was(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    train_diffusion.train(from_mapping(TrainDiffusionConfig, settings))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["head/grad_norm"] > 0.0
    assert lines[0]["generated/masked_share"] == 0.0
    before = Planner.from_pretrained(tmp_path / "start").model.state_dict()
    after = Planner.from_pretrained(tmp_path / "run" / "model").model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("pose_head.") for name in changed)
    DiffusionHead(tmp_path / "run").initialize()

    broken = settings | {"output_dir": str(tmp_path / "broken")}
    once = broken["run"] | {"num_epochs": 1}
    run_config = from_mapping(TrainDiffusionConfig, broken | {"run": once})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_diffusion, "diffusion_loss", _stops_at(3))
        with pytest.raises(KeyboardInterrupt):
            train_diffusion.train(run_config)
    train_diffusion.train(run_config)
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("run", "broken")]
    assert weights[0] == weights[1]


def _stops_at(call: int) -> Any:
    calls = iter(range(1, call + 1))

    def interrupted(*args: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return diffusion_loss(*args)

    return interrupted


def test_each_script_refuses_the_other_ones_models(
    settings: dict[str, Any], start: Path, tmp_path: Path
) -> None:
    shared = {k: v for k, v in settings.items() if k not in ("rollout", "head_optimizer")}
    with pytest.raises(DataError, match=r"start rl/train_diffusion\.py for diffusion heads"):
        train_grpo.train(from_mapping(TrainGRPOConfig, shared))
    with pytest.raises(DataError, match="this script trains diffusion_head"):
        train_diffusion.train(from_mapping(TrainDiffusionConfig, settings | {"checkpoint_path": str(start)}))
    with pytest.raises(DataError, match="the agent wants diffusion_head"):
        DiffusionHead(start).initialize()
