"""Losses of both phases on a debug model: what they are, and whom their gradients reach."""

from pathlib import Path

import numpy as np
import pytest
import torch

from drivefine_agent.actions import MASKED
from drivefine_agent.diffusion.masking import sample_mask_ratios, sample_masks
from drivefine_agent.planner import Planner
from drivefine_agent.training.config import AugmentationConfig, ModelChoice, RefinerConfig, TrainSFTConfig
from drivefine_agent.training.corruptions import Corruption
from drivefine_agent.training.demonstrations import Demonstrations, load_demonstrations
from drivefine_agent.training.from_mapping import from_mapping
from drivefine_agent.training.model_choice import build_planner
from drivefine_agent.training.objectives import (
    Instructions,
    generator_loss,
    perception_loss,
    refiner_loss,
    spoilt_answers,
)
from drivefine_agent.training.scenes import load_split_scenes
from drivefine_agent.training.seeds import generator_for


@pytest.fixture
def planner(debug_config: TrainSFTConfig) -> Planner:
    return build_planner(debug_config.model, seed=0)


@pytest.fixture
def scenes(debug_config: TrainSFTConfig, planner: Planner) -> Demonstrations:
    split = load_split_scenes(debug_config.paths, debug_config.train_test_split, 6, show_progress=False)
    return load_demonstrations(
        split, planner.prompts, Path(str(debug_config.tile_cache_path)), show_progress=False
    )


def _reached(planner: Planner) -> set[str]:
    return {
        name
        for name, parameter in planner.model.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
    }


def test_generator_loss_is_the_mean_over_slots_of_their_masked_rows(
    planner: Planner, scenes: Demonstrations
) -> None:
    """The same by loops: each slot's log-probability in the row that masks it, all rows computed alone."""
    batch = scenes.batch(range(3))
    predict = Instructions(planner.prompts, "cpu").predict
    loss = generator_loss(planner.model, batch, predict, generator_for(0, "masks", 0), pairs_per_scene=2)

    generator = generator_for(0, "masks", 0)
    is_masked = sample_masks(sample_mask_ratios(6, generator), 24, generator=generator).reshape(3, 2, 24)
    terms = []
    for scene in range(3):
        for pair in range(2):
            for mask in (is_masked[scene, pair], ~is_masked[scene, pair]):
                rows = torch.where(mask, MASKED, batch.actions[scene])[None, None]
                lengths = None if batch.context_lengths is None else batch.context_lengths[scene : scene + 1]
                logits = planner.model(
                    batch.tiles[scene : scene + 1],
                    batch.context_ids[scene : scene + 1],
                    predict,
                    rows,
                    context_lengths=lengths,
                )
                terms.append(-logits.log_probs(batch.actions[scene][None, None])[0, 0][mask])
    assert loss.total.item() == pytest.approx(torch.cat(terms).mean().item(), rel=1e-5)


def test_generator_loss_reaches_everything_but_the_refiner(planner: Planner, scenes: Demonstrations) -> None:
    predict = Instructions(planner.prompts, "cpu").predict
    generator_loss(
        planner.model, scenes.batch(range(3)), predict, generator_for(0, "masks", 0)
    ).total.backward()
    parts = {
        part: {id(p) for p in planner.model.parameters_of(part)}
        for part in ("vision", "projector", "language", "action", "refinement")
    }
    reached = {id(p) for n, p in planner.model.named_parameters() if n in _reached(planner)}
    for part, members in parts.items():
        share = len(members & reached) / len(members)
        assert share == 0 if part == "refinement" else share > 0.9, f"{part}: {share:.2f}"


def test_perception_loss_is_the_mean_cross_entropy_and_reaches_what_sees(
    planner: Planner, scenes: Demonstrations
) -> None:
    batch = scenes.batch(range(3))
    assert batch.perception is not None
    assert batch.perception.shape == (3, 2, 4, 6)
    loss = perception_loss(planner.model, batch)
    with torch.no_grad():
        probability = planner.model.perception_logits(planner.model.encode_images(batch.tiles)).sigmoid()
    expected = torch.where(batch.perception > 0.5, -probability.log(), -(1 - probability).log()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert {name.split(".")[0] for name in _reached(planner)} == {"vision", "projector", "perception"}


def test_perception_without_grids_is_an_error(planner: Planner, scenes: Demonstrations) -> None:
    with pytest.raises(ValueError, match="must hold bird's-eye grids"):
        perception_loss(planner.model, scenes.batch(range(3))._replace(perception=None))


def test_refiner_loss_reaches_the_refiner_alone(planner: Planner, scenes: Demonstrations) -> None:
    config = RefinerConfig(num_denoising_steps=3)
    loss = refiner_loss(
        planner.model,
        scenes.batch(range(3)),
        Instructions(planner.prompts, "cpu"),
        planner.action_tokenizer,
        config,
        generator_for(0, "spoil", 0),
    )
    loss.total.backward()
    refiner = {name for name, _ in planner.model.named_parameters() if "refine_layers" in name}
    assert _reached(planner) == refiner


def test_spoilt_answers_come_in_their_shares(planner: Planner, scenes: Demonstrations) -> None:
    """Rows of one kind alone, then 5 rows: 1 as it is, 2 own samples, 1 outlier, 1 drift."""
    batch = scenes.batch(range(4))
    predict = Instructions(planner.prompts, "cpu").predict
    context = planner.model.encode_context(batch.tiles, batch.context_ids, batch.context_lengths)

    def spoil(shares: tuple[float, ...], rows: int) -> np.ndarray:
        config = RefinerConfig(rows_per_scene=rows, shares=shares, num_denoising_steps=2)
        generator = generator_for(0, "spoil", 0)
        answers = spoilt_answers(
            planner.model, batch, context, predict, planner.action_tokenizer, config, generator
        )
        planner.action_tokenizer.decode(answers.numpy())  # complete, and each table in its own slots
        return answers.numpy()

    truth = batch.actions.numpy()[:, None]
    assert (spoil((1, 0, 0, 0), 3) == truth).all()
    changed = (spoil((0, 0, 1, 0), 3) != truth).sum(axis=-1)
    assert changed.max() <= 3
    mixed = spoil((0.2, 0.4, 0.2, 0.2), 5)
    assert mixed.shape == (4, 5, 24)
    assert ((mixed == truth).all(axis=-1).sum(axis=1) >= 1).all()
    assert len(Corruption) == 4


def test_batches_are_the_recorded_scenes_and_mirroring_exchanges_all_of_them(scenes: Demonstrations) -> None:
    batch = scenes.batch([2, 0])
    np.testing.assert_array_equal(batch.tiles.numpy(), scenes.tiles[[2, 0]])
    np.testing.assert_array_equal(batch.poses, scenes.poses[[2, 0], 0])
    mirrored = scenes.batch([2, 0], AugmentationConfig(mirror_probability=1.0), generator_for(0, "mirror", 0))
    np.testing.assert_array_equal(mirrored.poses, batch.poses * [1, -1, -1])
    np.testing.assert_array_equal(mirrored.actions.numpy(), scenes.actions[[2, 0], 1])
    assert not torch.equal(mirrored.tiles, batch.tiles)


def test_equal_seeds_give_equal_models_and_other_seeds_others() -> None:
    first, again, other = (
        build_planner(ModelChoice(preset="debug"), seed).model.state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_wrong_model_choices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fields of DriveFineConfig, got \['n_refin'\]"):
        build_planner(ModelChoice(preset="debug", overrides={"n_refin": 1}), 0)
    with pytest.raises(ValueError, match="import_checkpoint"):
        build_planner(ModelChoice(preset="llada_8b"), 0)
    with pytest.raises(ValueError, match=r"can name n_refine only, got .*pool_size"):
        build_planner(ModelChoice(init_from="x", overrides={"n_refine": 1, "pool_size": 2}), 0)


def test_a_trained_head_is_kept_where_only_something_else_is_overridden(tmp_path: Path) -> None:
    choice = ModelChoice(preset="debug", decoder="diffusion_head")
    planner = build_planner(choice, seed=0)
    planner.save_pretrained(tmp_path)
    before = planner.model.state_dict()
    same = ModelChoice(init_from=str(tmp_path), overrides={"n_refine": 0})
    after = build_planner(same, seed=1).model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    wider = ModelChoice(init_from=str(tmp_path), decoder="diffusion_head", overrides={"head_width": 64})
    model = build_planner(wider, seed=1).model
    assert model.pose_head is not None
    assert model.pose_head.pose_out.in_features == 64


def test_a_generator_without_training_needs_a_checkpoint() -> None:
    untrained = {"output_dir": "out", "generator": {"num_epochs": 0}}
    with pytest.raises(ValueError, match=r"generator\.num_epochs=0 needs model\.init_from"):
        from_mapping(TrainSFTConfig, untrained)
    from_mapping(TrainSFTConfig, untrained | {"model": {"init_from": "x"}})


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_checkpoint_can_be_given_another_number_of_refinement_blocks(count: int, tmp_path: Path) -> None:
    """They are the model's last blocks; everything else is the checkpoint's."""
    planner = build_planner(ModelChoice(preset="debug"), seed=0)
    for parameter in planner.model.backbone.refine_layers.parameters():  # a trained expert, not to be kept
        torch.nn.init.zeros_(parameter)
    planner.save_pretrained(tmp_path)
    model = build_planner(ModelChoice(init_from=str(tmp_path), overrides={"n_refine": count}), 0).model
    assert model.config.n_refine == count
    before, after = planner.model.state_dict(), model.state_dict()
    is_refiner = {name: name.startswith("backbone.refine_layers.") for name in (*before, *after)}
    assert {name for name in before if not is_refiner[name]} == {n for n in after if not is_refiner[n]}
    assert all(torch.equal(after[name], before[name]) for name in after if not is_refiner[name])
    copies = list(model.backbone.layers)[len(model.backbone.layers) - count :]
    assert len(model.backbone.refine_layers) == count
    for copy, original in zip(model.backbone.refine_layers, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(copy.parameters(), original.parameters(), strict=True))
