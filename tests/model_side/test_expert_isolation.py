"""The refinement branch trains the refinement blocks and nothing else; the generator never touches them."""

from __future__ import annotations

import torch
from tiny_models import make_inputs, make_model, random_actions

from drivefine_agent.diffusion.losses import answer_cross_entropy
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel

TARGETS_SEED = 5


def backward(model: DriveFineModel, expert: str, slot_restricted: bool = True) -> dict[str, bool]:
    """Parameter name -> whether the loss on all slots of complete anchors gave it a non-zero gradient."""
    inputs = make_inputs(model)
    generator = torch.Generator().manual_seed(TARGETS_SEED)
    anchors, targets = (random_actions(model.config, (3, 4), generator) for _ in range(2))
    model.zero_grad()
    logits = model(inputs.tiles, inputs.context_ids, inputs.instruction_ids, anchors, expert)
    answer_cross_entropy(logits, targets).total.backward()
    return {n: p.grad is not None and bool(p.grad.abs().max() > 0) for n, p in model.named_parameters()}


def test_refiner_equals_generator_while_its_blocks_are_copies() -> None:
    model = make_model()
    model.backbone.copy_generation_to_refinement()
    inputs = make_inputs(model)
    generator, refiner = model(*inputs), model(*inputs, expert="refinement")
    assert (generator.spatial - refiner.spatial).abs().max() < 1e-12
    assert (generator.heading - refiner.heading).abs().max() < 1e-12


def test_a_new_model_starts_with_copies() -> None:
    model = DriveFineModel(DriveFineConfig.debug())
    for own, source in zip(model.backbone.refine_layers, model.backbone.layers[4:], strict=True):
        for name, parameter in own.named_parameters():
            assert torch.equal(parameter, source.get_parameter(name)), name


def test_refinement_loss_reaches_all_refinement_parameters_and_no_other() -> None:
    has_gradient = backward(make_model(), "refinement")
    assert {n for n, got in has_gradient.items() if got} == {n for n in has_gradient if "refine_layers" in n}


def test_refinement_loss_leaves_no_gradient_even_through_a_context_with_gradients() -> None:
    model = make_model()
    inputs = make_inputs(model)
    context = model.encode_context(inputs.tiles, inputs.context_ids)
    assert context.hidden.requires_grad
    prompt = model.append_instruction(context, inputs.instruction_ids, "refinement")
    logits = model.answer_logits(prompt, inputs.actions)
    (logits.spatial.sum() + logits.heading.sum()).backward()
    assert all(p.grad is None for n, p in model.named_parameters() if "refine_layers" not in n)


def test_refinement_loss_is_isolated_with_a_full_vocabulary_softmax_too() -> None:
    has_gradient = backward(make_model(slot_restricted=False), "refinement")
    assert {n for n, got in has_gradient.items() if got} == {n for n in has_gradient if "refine_layers" in n}


def test_generator_loss_leaves_the_refinement_blocks_untouched_and_reaches_the_rest() -> None:
    model = make_model(slot_restricted=False)
    inputs = make_inputs(model)
    targets = random_actions(model.config, (3, 4), torch.Generator().manual_seed(TARGETS_SEED))
    answer_cross_entropy(model(*inputs), targets).total.backward()
    for name, parameter in model.named_parameters():
        got = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        should = "refine_layers" not in name and "post_layernorm" not in name
        assert got == should, name


def test_parts_are_disjoint_and_hold_every_trainable_parameter() -> None:
    for overrides in ({}, {"n_refine": 0}, {"slot_restricted": False}, {"learned_positions": True}):
        model = make_model(**overrides)
        parts = ("vision", "projector", "language", "action", "refinement")
        ids = [id(p) for part in parts for p in model.parameters_of(part)]
        assert len(ids) == len(set(ids))
        assert set(ids) == {id(p) for p in model.parameters() if p.requires_grad}


def test_no_trainable_parameter_idles_in_generator_training() -> None:
    model = make_model()
    got = backward(model, "generation")
    with_gradient = {id(p) for n, p in model.named_parameters() if got[n]}
    for part in ("vision", "projector", "language", "action"):
        assert all(id(p) in with_gradient for p in model.parameters_of(part)), part
