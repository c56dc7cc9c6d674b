"""GRPO of the autoregressive baseline: exact log-probabilities of its tokens from one pass over all rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from drivefine_agent.agent import DriveFineAgent
from drivefine_agent.errors import DataError
from drivefine_agent.model.choices import IMAGE_PLACEHOLDER
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.planner import Planner
from drivefine_agent.training.config import ModelChoice
from drivefine_agent.training.from_mapping import from_mapping
from drivefine_agent.training.model_choice import build_planner
from rl import train_grpo, train_hybrid
from rl.config import RolloutConfig, TrainGRPOConfig, TrainHybridConfig
from rl.policy import PolicyBatch, PolicyModule
from rl.rollout import SceneInputs, encode_scenes, sample_group

SPLIT = "synth_one_stage"


@pytest.fixture
def model() -> DriveFineModel:
    torch.manual_seed(0)
    made = DriveFineModel(DriveFineConfig.debug(decoder_type="autoregressive", n_refine=0)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.fixture
def batch(model: DriveFineModel) -> tuple[PolicyBatch, torch.Tensor]:
    """3 answers in each of 2 scenes, sampled, and their log-probabilities while decoding."""
    spec = model.config.tiles
    tiles = torch.randint(0, 256, (2, spec.num_tiles, spec.size_px, spec.size_px, 3), dtype=torch.uint8)
    context_ids = torch.randint(0, 50, (2, 9))
    context_ids[:, 2] = IMAGE_PLACEHOLDER
    scenes = SceneInputs(model.encode_images(tiles).detach(), context_ids, torch.tensor([9, 6]))
    predict_ids = torch.randint(0, 50, (4,))
    trace = sample_group(
        model, encode_scenes(model, scenes), predict_ids, RolloutConfig(num_samples=3), 3, [0, 1]
    )
    return PolicyBatch(
        context_ids, scenes.context_lengths, predict_ids, predict_ids, trace.actions, trace.step_map, None,
        scenes.visual,
    ), trace.log_probs  # fmt: skip


def test_log_probs_of_one_pass_are_those_of_decoding(
    model: DriveFineModel, batch: tuple[PolicyBatch, torch.Tensor]
) -> None:
    inputs, while_decoding = batch
    for tau in (1, 12):  # of no meaning here
        got = PolicyModule(model, tau, 12)(inputs).generator
        torch.testing.assert_close(got.float(), while_decoding, rtol=1e-6, atol=1e-6)
    assert float(while_decoding.std()) > 0.1


def test_the_gradient_of_all_rows_together_is_that_of_each_alone(
    model: DriveFineModel, batch: tuple[PolicyBatch, torch.Tensor]
) -> None:
    inputs, _ = batch
    weights = torch.randn(2, 3, 1, dtype=torch.float64)
    (PolicyModule(model, 1, 12)(inputs).generator * weights).sum().backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for scene in range(2):
        length = int(inputs.context_lengths[scene])
        for row in range(3):
            logits = model.one_pass_logits(
                None,
                inputs.context_ids[scene : scene + 1, :length],
                inputs.predict_ids,
                inputs.actions[scene : scene + 1, row : row + 1],
                visual=inputs.visual[scene : scene + 1],
            )
            value = logits.log_probs(inputs.actions[scene : scene + 1, row : row + 1]).sum()
            (value * weights[scene, row, 0]).backward()
    assert len(together) > 50
    for name, gradient in together.items():
        torch.testing.assert_close(
            gradient, model.get_parameter(name).grad, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_run_with_the_real_scorer_trains_it_and_the_agent_drives_it(
    image_dataset: Path, scene_cache: Path, tmp_path: Path
) -> None:
    overrides = {
        "spatial_step_m": 0.125, "spatial_min_m": -2.0, "pose_format": "text", "prompt_wording": "short",
    }  # fmt: skip
    planner = build_planner(ModelChoice("debug", overrides, decoder="autoregressive"), seed=0)
    planner.save_pretrained(tmp_path / "start")
    settings = {
        "output_dir": str(tmp_path / "run"),
        "checkpoint_path": str(tmp_path / "start"),
        "metric_cache_path": str(scene_cache),
        "dataset_root": str(image_dataset),
        "train_test_split": SPLIT,
        "allow_test_split": True,  # its logs lie in the folder of test logs
        "i_train_on_test_tokens_of": SPLIT,
        "max_scenes": 4,
        "tile_cache_path": str(tmp_path.parent / "tiles"),
        "rollout": {"num_samples": 4},
        "generator_optimizer": {"learning_rate": 1e-3},
        "run": {"num_threads": 1, "batch_size": 2, "micro_batch_scenes": 1},
    }
    train_grpo.train(from_mapping(TrainGRPOConfig, settings))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert 0.0 < lines[0]["generated/reward"] < 1.0
    assert lines[0]["generator/grad_norm"] > 0.0
    assert lines[0]["generator/kl"] == 0.0
    assert lines[1]["generator/kl"] > 0.0
    trained = Planner.from_pretrained(tmp_path / "run" / "model").model
    assert trained.config.decoder_type == "autoregressive"
    before = planner.model.state_dict()
    assert any(not torch.equal(before[name], weight) for name, weight in trained.state_dict().items())

    DriveFineAgent(str(tmp_path / "run"), decoder="autoregressive", refine=False).initialize()
    with pytest.raises(DataError, match="=autoregressive, the agent wants masked"):
        DriveFineAgent(str(tmp_path / "run")).initialize()
    with pytest.raises(DataError, match="no refinement expert"):
        train_hybrid.train(from_mapping(TrainHybridConfig, settings | {"output_dir": str(tmp_path / "h")}))
    assert np.isfinite(lines[0]["group/reward_std"])
