"""Packed evaluation against one row at a time, against the roll-out, and where its gradients go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from drivefine_agent.actions import MASKED
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel
from rl.config import HybridRolloutConfig, RolloutConfig, TrainGRPOConfig, TrainHybridConfig
from rl.objectives import group_advantages, grpo_loss, pair_advantages, refiner_loss
from rl.policy import PolicyModule, num_trace_rows, trace_rows
from rl.setup import policy_settings

NUM_STEPS = 6


def _gradients(model: torch.nn.Module, value: Tensor) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, gradients, strict=True) if g is not None}


def _assert_equal_gradients(model: torch.nn.Module, packed: Tensor, loop: Tensor) -> None:
    weight = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine, theirs = _gradients(model, (packed * weight).sum()), _gradients(model, (loop * weight).sum())
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-5, msg=name)


def test_states_at_the_starts_of_groups_by_hand() -> None:
    """Two samples of five tokens, tau 2: steps 0 1 | 2 3 | 4; the all-masked row is shared."""
    m = MASKED
    actions = torch.tensor([[[10, 11, 12, 13, 14], [20, 21, 22, 23, 24]]])
    step_map = torch.tensor([[[0, 3, 1, 2, 4], [4, 0, 0, 3, 2]]])
    rows, scored_row = trace_rows(actions, step_map, tau=2, num_rows=3)
    assert rows[0].tolist() == [
        [m, m, m, m, m],
        [10, m, 12, m, m],
        [10, 11, 12, 13, m],
        [m, 21, 22, m, m],
        [m, 21, 22, 23, 24],
    ]
    assert scored_row[0].tolist() == [[0, 1, 0, 1, 2], [4, 0, 0, 3, 3]]
    assert [num_trace_rows(12, tau) for tau in (1, 3, 5, 12)] == [12, 4, 3, 1]


@pytest.mark.parametrize("tau", [1, 2, 4, 6])
def test_every_token_is_scored_once_and_where_its_group_starts(sampled, tau: int) -> None:
    """Packed values and gradients equal those of one unpacked sequence per row and scene, in float64."""
    model, batch = sampled.model, sampled.batch
    packed = PolicyModule(model, tau, NUM_STEPS)(batch._replace(targets=None)).generator
    loop, scored = torch.zeros_like(packed), torch.zeros_like(packed)
    for scene in range(2):
        length = int(batch.context_lengths[scene])
        for sample in range(3):
            actions, steps = batch.actions[scene, sample], batch.step_map[scene, sample]
            for first in range(0, NUM_STEPS, tau):
                row = torch.where(steps < first, actions, MASKED)
                logits = model(
                    None,
                    batch.context_ids[scene : scene + 1, :length],
                    batch.predict_ids,
                    row[None, None],
                    visual=batch.visual[scene : scene + 1],
                )
                is_scored = (steps >= first) & (steps < first + tau)
                log_probs = logits.log_probs(actions[None, None])[0, 0]
                index = (torch.tensor(scene), torch.tensor(sample))
                loop = loop.index_put(index, torch.where(is_scored, log_probs, 0.0), accumulate=True)
                scored[scene, sample] += is_scored
    assert (scored == 1).all()
    torch.testing.assert_close(packed, loop, rtol=1e-5, atol=1e-5)
    _assert_equal_gradients(model, packed, loop)


def test_with_tau_1_log_probs_are_those_of_the_rollout(sampled) -> None:
    got = PolicyModule(sampled.model, 1, NUM_STEPS)(sampled.batch).generator
    torch.testing.assert_close(got.float(), sampled.trace.log_probs, rtol=0, atol=1e-5)


def test_with_larger_tau_they_are_not(sampled) -> None:
    """Guards the test above: the states do differ."""
    got = PolicyModule(sampled.model, 6, NUM_STEPS)(sampled.batch).generator
    assert (got.float() - sampled.trace.log_probs).abs().max() > 1e-3


def test_refiner_reads_all_targets_from_one_pass_per_anchor(sampled) -> None:
    model, batch = sampled.model, sampled.batch
    got = PolicyModule(model, 2, NUM_STEPS)(batch).refiner
    assert got.shape == (2, 3, 5, 24)
    rows = []
    for scene in range(2):
        length = int(batch.context_lengths[scene])
        for anchor in range(3):
            for target in range(5):
                logits = model(
                    None,
                    batch.context_ids[scene : scene + 1, :length],
                    batch.refine_ids,
                    batch.actions[scene : scene + 1, anchor : anchor + 1],
                    "refinement",
                    visual=batch.visual[scene : scene + 1],
                )
                rows.append(logits.log_probs(batch.targets[scene, anchor, target][None, None])[0, 0])
    loop = torch.stack(rows).view_as(got)
    torch.testing.assert_close(got, loop, rtol=1e-5, atol=1e-5)
    _assert_equal_gradients(model, got, loop)


def test_anchors_may_be_others_than_the_samples(sampled) -> None:
    policy, batch = PolicyModule(sampled.model, 2, NUM_STEPS), sampled.batch
    more = torch.cat([batch.actions, batch.targets[:, 0, -1:]], dim=1)  # (2, 4, 24)
    targets = torch.cat([batch.targets, batch.targets[:, :1]], dim=1)
    with_more = policy(batch._replace(anchors=more, targets=targets))
    without = policy(batch)
    torch.testing.assert_close(with_more.refiner[:, :3], without.refiner)
    torch.testing.assert_close(with_more.generator, without.generator)
    assert not torch.allclose(with_more.refiner[:, 3], without.refiner[:, 0])


def test_temperature_is_that_of_the_sampling(sampled) -> None:
    model, batch = sampled.model, sampled.batch
    # tau 6, one row: everything masked
    warm = PolicyModule(model, 6, NUM_STEPS, temperature=2.0, refine_temperature=0.5)(batch)
    for expert, ids, rows, temperature, got in (
        ("generation", batch.predict_ids, torch.full_like(batch.actions, MASKED), 2.0, warm.generator),
        ("refinement", batch.refine_ids, batch.actions, 0.5, warm.refiner[:, range(3), range(3)]),
    ):
        prompt = model.prefill(None, batch.context_ids, ids, expert, batch.context_lengths, batch.visual)
        logits = model.answer_logits(prompt, rows)
        log_probs = torch.log_softmax(logits.spatial[:, :, 0, 0] / temperature, -1)
        expected = log_probs.gather(-1, batch.actions[..., :1]).squeeze(-1)
        torch.testing.assert_close(got[..., 0], expected, rtol=1e-5, atol=1e-5)


def test_temperature_with_a_full_vocabulary_softmax_is_refused() -> None:
    model = DriveFineModel(DriveFineConfig.debug(slot_restricted=False))
    PolicyModule(model, 2, NUM_STEPS)
    with pytest.raises(ValueError, match=r"temperature must be 1, got 0\.7 and 1"):
        PolicyModule(model, 2, NUM_STEPS, 0.7)
    with pytest.raises(ValueError, match=r"temperature must be 1, got 1\.0 and 0\.3"):
        PolicyModule(model, 2, NUM_STEPS, refine_temperature=0.3)


def test_gradients_stay_with_their_experts(sampled) -> None:
    model = sampled.model
    refiner_names = {name for name, _ in model.named_parameters() if "backbone.refine_layers" in name}
    out = PolicyModule(model, 2, NUM_STEPS)(sampled.batch)
    assert refiner_names
    assert set(_gradients(model, out.refiner.sum())) == refiner_names
    out = PolicyModule(model, 2, NUM_STEPS)(sampled.batch)
    generated = set(_gradients(model, out.generator.sum()))
    assert not generated & refiner_names
    assert not any(name.startswith(("vision", "projector")) for name in generated)
    assert any("backbone.layers.0." in name for name in generated)


def test_without_the_generator_the_refiner_still_gets_its_gradient(sampled) -> None:
    model, policy = sampled.model, PolicyModule(sampled.model, 2, NUM_STEPS)
    alone = policy(sampled.batch._replace(step_map=None))
    assert alone.generator is None
    together = policy(sampled.batch)
    torch.testing.assert_close(alone.refiner, together.refiner)
    mine, theirs = (_gradients(model, out.refiner.sum()) for out in (alone, together))
    torch.testing.assert_close(mine, theirs)
    assert policy(sampled.batch._replace(targets=None)).refiner is None


def test_at_the_start_ratios_are_1_and_divergence_0(sampled) -> None:
    """Old log-probabilities and the reference's, computed without gradient, are the same bits."""
    policy = PolicyModule(sampled.model, 2, NUM_STEPS)
    new = policy(sampled.batch)
    with torch.no_grad():
        old = policy(sampled.batch)
    assert torch.equal((new.generator - old.generator).exp(), torch.ones_like(old.generator))
    assert torch.equal((new.refiner - old.refiner).exp(), torch.ones_like(old.refiner))
    rewards, is_valid = torch.rand(2, 3), torch.ones(2, 3, dtype=torch.bool)
    advantages = group_advantages(rewards, is_valid)
    loss = grpo_loss(new.generator, old.generator, old.generator, advantages, is_valid, 0.2, 0.1)
    assert loss.kl.item() == 0.0
    assert loss.clipped_share.item() == 0.0
    assert abs(loss.total.item()) < 1e-7  # advantages of a group add to 0
    pairs = pair_advantages(rewards, rewards[:, None])
    valid = torch.ones_like(pairs, dtype=torch.bool)
    assert abs(refiner_loss(new.refiner[:, :, :3], old.refiner[:, :, :3], pairs, valid, 0.2).total) < 1e-7


def test_entropy_is_that_of_the_scored_distributions(sampled) -> None:
    model, batch = sampled.model, sampled.batch
    out = PolicyModule(model, 6, NUM_STEPS)(batch._replace(wants_entropy=True))
    prompt = model.prefill(
        None, batch.context_ids, batch.predict_ids, "generation", batch.context_lengths, batch.visual
    )
    logits = model.answer_logits(prompt, torch.full_like(batch.actions, MASKED))
    expected = torch.distributions.Categorical(logits=logits.spatial[:, :, 3, 1]).entropy()
    torch.testing.assert_close(out.generator_entropy[..., 10], expected, rtol=1e-5, atol=1e-5)
    assert out.refiner_entropy.shape == (2, 3, 24)
    assert not out.generator_entropy.requires_grad
    assert PolicyModule(model, 6, NUM_STEPS)(batch).generator_entropy is None


def test_the_policy_is_evaluated_at_the_temperatures_of_the_sampling() -> None:
    folders = {"output_dir": "out", "checkpoint_path": "sft", "metric_cache_path": "cache"}
    hybrid = TrainHybridConfig(
        **folders, rollout=HybridRolloutConfig(num_denoising_steps=6, temperature=0.7, refine_temperature=0.3)
    )
    expected = {"tau": 3, "num_steps": 6, "temperature": 0.7}
    assert policy_settings(hybrid) == expected | {"refine_temperature": 0.3}
    grpo = TrainGRPOConfig(**folders, rollout=RolloutConfig(num_denoising_steps=6, temperature=0.7))
    assert policy_settings(grpo) == expected
