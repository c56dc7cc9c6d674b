"""The learned scorer: loss and features by hand, the official formula, files, and a planner left alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from drivefine_agent.errors import DataError
from drivefine_agent.learned_scorer import (
    PREDICTED,
    LearnedScorer,
    candidate_states,
    load_head_for,
    poses_of,
    predicted_score,
)
from drivefine_agent.model.choices import IMAGE_PLACEHOLDER
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.model.scorer_head import (
    ScorerHead,
    ScorerHeadConfig,
    load_scorer,
    motion_features,
    save_scorer,
)
from drivefine_agent.model.weight_files import weights_hash
from rl.scorer_training import scorer_loss

READS = torch.arange(5)


@pytest.fixture(scope="module")
def model() -> DriveFineModel:
    torch.manual_seed(0)
    return DriveFineModel(DriveFineConfig.debug(spatial_step_m=2.0, spatial_min_m=-64.0))


def head_for(model: DriveFineModel, planner_sha256: str = "") -> ScorerHead:
    torch.manual_seed(1)
    width = model.config.text_config.hidden_size
    return ScorerHead(ScorerHeadConfig(width, PREDICTED, planner_sha256, slot_width=4, width=8))


def candidates(model: DriveFineModel) -> torch.Tensor:
    """(2, 3, 24) legal answers."""
    spec = model.config.action_spec
    ids = torch.randint(0, spec.spatial_m.num_bins, (2, 3, 8, 3))
    ids[..., 2] = spec.heading_offset + torch.randint(0, spec.heading_deg.num_bins, (2, 3, 8))
    return ids.flatten(-2)


def context_of(model: DriveFineModel) -> object:
    spec = model.config.tiles
    tiles = torch.randint(0, 256, (2, spec.num_tiles, spec.size_px, spec.size_px, 3), dtype=torch.uint8)
    ids = torch.randint(0, 50, (2, 9))
    ids[:, 2] = IMAGE_PLACEHOLDER
    return model.encode_context(tiles, ids)


def test_no_gradient_reaches_the_planner(model: DriveFineModel) -> None:
    """Not even where gradients are on throughout and the states are made with a graph."""
    actions, context, head = candidates(model), context_of(model), head_for(model)
    prompt = model.append_instruction(context, READS, "refinement")
    states = model.answer_hidden(prompt, actions)
    assert states.requires_grad
    assert not candidate_states(model, context, READS, actions).requires_grad
    truth = torch.rand(2, 3, len(PREDICTED))
    scorer_loss(head(states, poses_of(model, actions)), truth).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_a_candidate_is_judged_by_itself_and_by_its_scene(model: DriveFineModel) -> None:
    """The same whatever else is in the batch, different for other answers and other scenes."""
    torch.manual_seed(2)
    actions, context = candidates(model), context_of(model)
    scorer = LearnedScorer(head_for(model).eval(), model, READS)
    all_at_once = scorer(context, actions)
    assert all_at_once.shape == (2, 3, len(PREDICTED))
    assert bool(((all_at_once > 0) & (all_at_once < 1)).all())
    torch.testing.assert_close(scorer(context, actions[:, 1:2]), all_at_once[:, 1:2])
    assert (all_at_once[0] - all_at_once[0].mean(dim=0)).abs().max() > 1e-4
    exchanged = scorer(context, actions.flip(0)).flip(0)
    assert (exchanged - all_at_once).abs().max() > 1e-6


def test_a_saved_head_predicts_the_same_and_knows_its_planner(model: DriveFineModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    head = head_for(model, weights_hash(tmp_path / "model")).eval()
    save_scorer(head, tmp_path / "scorer")
    loaded = load_head_for(tmp_path / "scorer", tmp_path / "model")
    hidden, poses = torch.randn(2, 24, head.config.hidden_size), torch.randn(2, 8, 3)
    assert torch.equal(loaded(hidden, poses), head(hidden, poses))
    assert not loaded.training

    (tmp_path / "other").mkdir()
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "other" / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(DataError, match="reads the hidden states of other weights"):
        load_head_for(tmp_path / "scorer", tmp_path / "other")
    with pytest.raises(DataError, match="no learned scorer at"):
        load_scorer(tmp_path)
    file = tmp_path / "scorer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"width": 9}))
    with pytest.raises(DataError, match="damaged or of another version"):
        load_scorer(tmp_path / "scorer")


def test_perfect_predictions_give_the_official_score(goldens: Path) -> None:
    """720 trajectories that the official NAVSIM 1.1 scored."""
    table = pd.read_parquet(goldens / "pdms_v11.parquet").dropna()
    score = predicted_score(table[list(PREDICTED)].to_numpy())
    assert len(score) > 500
    np.testing.assert_allclose(score, table["score"], atol=1e-12)


def test_an_expected_score_by_hand() -> None:
    """0.8 x 0.5 x (5 x 0.6 + 5 x 0.9 + 2 x 0.75) / 12 = 0.4 x 9 / 12; driving direction has no weight."""
    values = {
        "no_at_fault_collisions": 0.8,
        "drivable_area_compliance": 0.5,
        "driving_direction_compliance": 0.1,
        "ego_progress": 0.6,
        "time_to_collision_within_bound": 0.9,
        "comfort": 0.75,
    }
    assert predicted_score(np.array([values[name] for name in PREDICTED])) == pytest.approx(0.3)


def test_the_loss_weighs_what_is_multiplied_and_leaves_out_what_failed() -> None:
    """Three candidates: NC x DAC of 1 and 0.5, and one that could not be scored."""
    truth = torch.tensor(
        [
            [1.0, 1.0, 1.0, 0.8, 1.0, 1.0],
            [0.5, 1.0, 0.0, 0.2, 0.0, 1.0],
            [math.nan] * 6,
        ]
    )
    chance = torch.tensor([[0.7] * 6, [0.4] * 6, [0.01] * 6])

    def cross_entropy(p: float, y: float) -> float:
        return -(y * math.log(p) + (1 - y) * math.log(1 - p))

    def weighted(first: float, second: float, weight: float) -> float:
        return (cross_entropy(0.7, first) + weight * cross_entropy(0.4, second)) / (1 + weight)

    terms = [weighted(1, 0.5, 1), weighted(1, 1, 1), weighted(1, 0, 1)]
    terms += [weighted(0.8, 0.2, 0.5), weighted(1, 0, 0.5), weighted(1, 1, 0.5)]
    assert float(scorer_loss(torch.logit(chance), truth)) == pytest.approx(sum(terms) / 6, rel=1e-5)


def test_motion_features_of_even_driving() -> None:
    """10 m/s straight on: 5 m a pose are 0.25 of the scale; then 8 times that, and no acceleration."""
    poses = torch.zeros(8, 3)
    poses[:, 0] = 5.0 * torch.arange(1, 9)
    places, first, second = motion_features(poses).unflatten(-1, (3, 8, 3))
    torch.testing.assert_close(places[:, 0], 0.25 * torch.arange(1, 9).float())
    torch.testing.assert_close(first[:, 0], torch.full((8,), 2.0))
    assert second.abs().max() < 1e-5
    assert motion_features(poses * torch.tensor([1.0, 0.0, 0.0]))[1::3].abs().max() == 0.0
