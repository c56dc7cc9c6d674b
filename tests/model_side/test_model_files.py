"""Sizes, names, initialisation and files of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import make_inputs, make_model
from transformers import SiglipVisionConfig, SiglipVisionModel

from drivefine_agent.actions import ActionSpec
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel, count_parameters
from drivefine_agent.model.initialisation import fourier_features, ordinal_rows

GENERATOR_PARAMETERS = 8_482_350_624
BLOCK_PARAMETERS = 218_112_000


@pytest.mark.parametrize(
    ("n_refine", "added"),
    [(0, 0), (1, 218_112_000), (2, 436_224_000), (4, 872_448_000), (6, 1_308_672_000), (8, 1_744_896_000)],
)
def test_8b_parameter_counts(n_refine: int, added: int) -> None:
    with torch.device("meta"):
        counts = count_parameters(DriveFineModel(DriveFineConfig.llada_8b(n_refine=n_refine)))
    assert counts["refinement"] == added == n_refine * BLOCK_PARAMETERS
    assert counts["total"] == GENERATOR_PARAMETERS + added
    # The parts: 26-layer SigLIP tower; two projector layers and the newline; action and text tables.
    assert counts["vision"] == 397_747_744
    assert counts["projector"] == 21_504_000 + 4_096
    assert counts["embeddings"] == counts["heads"] == (126_464 + 5_800) * 4_096
    assert counts["backbone"] == 32 * BLOCK_PARAMETERS + 4_096 + added


@pytest.mark.parametrize(
    "overrides", [{}, {"n_refine": 0}, {"learned_positions": True, "pose_format": "action_tokens"}], ids=str
)
def test_save_and_load_round_trip(tmp_path: Path, overrides: dict) -> None:
    model = make_model(dtype=torch.float32, **overrides)
    inputs = make_inputs(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = DriveFineModel.from_pretrained(tmp_path)
    for (name, ours), (other, theirs) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs), name
    # Also what is not in the state: position ids of the vision tower, rotary tables.
    assert torch.equal(loaded(*inputs).spatial, model(*inputs).spatial)
    for part in ("vision", "projector", "language", "action", "refinement"):
        assert len(loaded.parameters_of(part)) == len(model.parameters_of(part))


def test_configuration_round_trip_and_derived_values(tmp_path: Path) -> None:
    for config in (
        DriveFineConfig.tiny(),
        DriveFineConfig.debug(),
        DriveFineConfig.llada_8b(tile_fit="letterbox"),
    ):
        config.save_pretrained(tmp_path)
        loaded = DriveFineConfig.from_pretrained(tmp_path)
        assert loaded.action_spec == config.action_spec
        assert loaded.tiles == config.tiles
        assert loaded.text_config.to_dict() == config.text_config.to_dict()
        assert loaded.vision_config.to_dict() == config.vision_config.to_dict()
    assert DriveFineConfig.llada_8b().action_spec == ActionSpec()
    assert DriveFineConfig.tiny().action_spec == ActionSpec()
    assert DriveFineConfig.llada_8b().num_shared_blocks == 28
    circle = DriveFineConfig.llada_8b(heading_min_deg=-180.0, heading_bins=3600)
    assert circle.action_spec == ActionSpec.full_circle()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_refine": 7}, r"n_refine must be in 0\.\.6.*got 7"),
        ({"n_refine": -1}, r"n_refine must be in 0\.\.6"),
        ({"mask_token_id": 300}, r"0\.\.299\), got 300"),
        ({"tile_fit": "stretch"}, "unknown tile fit 'stretch'.*letterbox"),
        ({"tile_interpolation": "nearest"}, "unknown tile interpolation 'nearest'"),
        ({"pose_format": "tokens"}, "unknown pose_format 'tokens'.*action_tokens"),
        ({"prompt_type": "all"}, "unknown prompt_type 'all'.*vel_and_acc"),
        ({"prompt_wording": "long"}, "unknown prompt_wording 'long'"),
        ({"spatial_step_m": 0.3}, "a bin at exactly zero"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_impossible_configurations_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DriveFineConfig.debug(**settings)


def test_ordinal_rows_fall_smoothly_with_distance() -> None:
    rows = ordinal_rows(ActionSpec(), torch.zeros(128), std=0.1, generator=torch.Generator().manual_seed(0))
    assert rows.shape == (5800, 128)
    assert float(rows.std()) == pytest.approx(0.1, rel=0.05)
    for first, size in ((0, 4000), (4000, 1800)):
        unit = torch.nn.functional.normalize(rows[first : first + size], dim=-1)
        middle = size // 2
        similarity = [float(unit[middle] @ unit[middle + distance]) for distance in (0, 1, 4, 32, 256)]
        assert similarity == sorted(similarity, reverse=True)
        assert similarity[1] > 0.95
        assert similarity[-1] < 0.6
    # Rows of the two tables have nothing to do with each other.
    assert float((rows[2000] @ rows[4900]).abs()) < 0.5 * float(rows[2000] @ rows[2000])


def test_fourier_features_of_zero_and_of_opposite_values() -> None:
    features = fourier_features(ActionSpec().spatial_m, 5)
    assert features[2000].tolist() == pytest.approx([1.0] * 5 + [0.0] * 5)
    assert torch.allclose(features[1900, :5], features[2100, :5], atol=1e-5)  # cosines: even
    assert torch.allclose(features[1900, 5:], -features[2100, 5:], atol=1e-5)  # sines: odd


def test_action_tables_start_ordinal_with_their_own_mean_and_spread() -> None:
    torch.manual_seed(0)
    model = DriveFineModel(DriveFineConfig.debug(action_embedding_std=None))
    with torch.no_grad():
        model.embeddings.embed_tokens.weight.add_(3.0)
        model.heads.lm_head.weight.mul_(5.0).sub_(2.0)
    model.initialise_action_rows(reference_ids=list(range(10, 20)))
    for table, base in (
        (model.embeddings.action_embed.weight, model.embeddings.embed_tokens.weight),
        (model.heads.action_head.weight, model.heads.lm_head.weight),
    ):
        spread = float(base.detach().std())
        offset = table.detach().mean(0) - base.detach()[10:20].mean(0)
        assert float(offset.abs().mean()) < 0.6 * spread
        assert float((table.detach() - base.detach()[10:20].mean(0)).std()) == pytest.approx(spread, rel=0.2)


def test_ordinal_tables_score_as_their_own_rows_and_are_smooth(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DriveFineModel(DriveFineConfig.debug(action_rows="ordinal", action_embedding_std=0.2))
    table, offset = model.heads.action_head, model.config.action_spec.heading_offset
    rows = table(torch.arange(model.config.action_spec.num_actions)).detach()  # (V, D), one by one
    assert float(rows.std()) == pytest.approx(0.2, rel=0.2)
    hidden = torch.randn(5, rows.shape[1])
    assert torch.allclose(table.spatial_scores(hidden), hidden @ rows[:offset].T, atol=1e-5)
    assert torch.allclose(table.heading_scores(hidden), hidden @ rows[offset:].T, atol=1e-5)
    # Whatever is learned, neighbouring rows stay closer than far ones: the map is common to all.
    with torch.no_grad():
        table.spatial.normal_()
    moved = table(torch.arange(offset)).detach()
    near = (moved[1:] - moved[:-1]).norm(dim=1).mean()
    far = (moved[16:] - moved[:-16]).norm(dim=1).mean()
    assert near < 0.6 * far
    # The fixed features are no part of a checkpoint, and come out the same after loading.
    model.save_pretrained(tmp_path)
    loaded = DriveFineModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.heads.action_head(torch.arange(offset)), moved)
    with pytest.raises(ValueError, match="only free action rows"):
        loaded.initialise_action_rows()


def test_frozen_ordinal_tables_get_no_gradient() -> None:
    model = DriveFineModel(DriveFineConfig.debug(action_rows="ordinal"))
    hidden = torch.randn(2, 24, 64, requires_grad=True)
    (
        model.heads(hidden, frozen=True).heading.sum() + model.heads(hidden, frozen=True).spatial.sum()
    ).backward()
    assert hidden.grad is not None
    assert all(p.grad is None for p in model.heads.parameters())
    model.heads(hidden).heading.sum().backward()
    assert model.heads.action_head.heading.grad is not None


def test_the_vision_tower_is_read_before_its_final_norm() -> None:
    model = make_model(dtype=torch.float32)
    tiles = make_inputs(model).tiles
    pixels = (tiles.flatten(0, 1).permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.5
    tower: SiglipVisionModel = model.vision.tower
    features = model.vision(tiles).flatten(0, 1)
    hidden = tower.embeddings(pixels)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, None)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    assert torch.allclose(features, hidden, atol=1e-6)
    assert (features - tower(pixels).last_hidden_state).abs().max() > 1e-2


def test_tiles_are_stitched_in_place_with_newlines() -> None:
    # Identity layers, so a visual token is the tower's feature; 2 x 2 tiles of 2 x 2 patches, no pooling.
    vision = SiglipVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, image_size=28,
        patch_size=14, vision_use_head=False,
    )  # fmt: skip
    config = DriveFineConfig.debug(tile_rows=2, pool_size=2)
    config.vision_config = vision
    projector = DriveFineModel(config).projector
    projector.layers = torch.nn.Identity()
    with torch.no_grad():
        projector.newline.fill_(-1.0)
    features = torch.arange(16.0).view(1, 4, 4, 1).expand(-1, -1, -1, 64)
    tokens = projector(features)[0, :, 0].reshape(4, 5).tolist()
    assert tokens == [[0, 1, 4, 5, -1], [2, 3, 6, 7, -1], [8, 9, 12, 13, -1], [10, 11, 14, 15, -1]]
    assert config.num_visual_tokens == 20


def test_pooling_is_bilinear() -> None:
    model = make_model(dtype=torch.float32)
    projector = model.projector
    projector.layers = torch.nn.Identity()
    features = torch.randn(1, 2, 4, 64)
    tokens = projector(features)[0]
    # 2 x 2 to 1 x 1: the sample point is the centre of the four, hence their mean.
    assert torch.allclose(tokens[:2], features[0].mean(dim=1), atol=1e-6)


@pytest.mark.parametrize(("fit", "expected"), [("resize", 1596), ("crop", 1596), ("letterbox", 1428)])
def test_visual_token_counts_of_the_paper_size(fit: str, expected: int) -> None:
    assert DriveFineConfig.llada_8b(tile_fit=fit).num_visual_tokens == expected


def test_visual_token_count_without_newlines() -> None:
    assert DriveFineConfig.llada_8b(image_newline=False).num_visual_tokens == 1568
