"""Answer distributions, masks and losses against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from drivefine_agent.actions import MASKED
from drivefine_agent.answer import AnswerLogits
from drivefine_agent.diffusion.losses import (
    answer_cross_entropy,
    masked_pair_weights,
    pair_scored_row,
)
from drivefine_agent.diffusion.masking import (
    complementary_rows,
    mask_actions,
    sample_mask_ratios,
    sample_masks,
)

NUM_SPATIAL, NUM_HEADING = 10, 6


def random_logits(*lead: int, seed: int = 0) -> AnswerLogits:
    generator = torch.Generator().manual_seed(seed)
    return AnswerLogits(
        2.0 * torch.randn(*lead, 8, 2, NUM_SPATIAL, generator=generator),
        2.0 * torch.randn(*lead, 8, NUM_HEADING, generator=generator),
    )


def random_targets(*lead: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spatial = torch.randint(0, NUM_SPATIAL, (*lead, 8, 2), generator=generator)
    heading = torch.randint(NUM_SPATIAL, NUM_SPATIAL + NUM_HEADING, (*lead, 8, 1), generator=generator)
    return torch.cat([spatial, heading], -1).flatten(-2)


def probability(logits: AnswerLogits, slot: int, action: int) -> float:
    """Of one action in one slot of an unbatched answer, by the definition of the softmax."""
    pose, field = divmod(slot, 3)
    values = logits.heading[pose] if field == 2 else logits.spatial[pose, field]
    index = action - NUM_SPATIAL if field == 2 else action
    return math.exp(values[index]) / sum(math.exp(v) for v in values)


def test_log_probs_are_those_of_each_slots_own_table() -> None:
    logits, targets = random_logits(), random_targets()
    expected = [math.log(probability(logits, slot, int(action))) for slot, action in enumerate(targets)]
    assert logits.log_probs(targets).tolist() == pytest.approx(expected, abs=1e-5)


def test_many_answers_can_be_read_from_one_row_of_logits() -> None:
    logits = random_logits(2)
    targets = random_targets(5, 2)
    together = logits.log_probs(targets)
    for k in range(5):
        assert torch.allclose(together[k], logits.log_probs(targets[k]), atol=1e-6)


def test_log_probs_follow_the_temperature() -> None:
    logits, targets = random_logits(), random_targets()
    halved = AnswerLogits(logits.spatial / 0.5, logits.heading / 0.5)
    assert torch.allclose(logits.log_probs(targets, temperature=0.5), halved.log_probs(targets), atol=1e-6)


def test_full_vocabulary_log_probs_subtract_the_common_normaliser() -> None:
    slot_restricted = random_logits()
    full = slot_restricted._replace(log_normalizer=torch.full((24,), 7.0))
    chosen = full.best()
    picked = torch.cat([full.spatial.amax(-1), full.heading.amax(-1, keepdim=True)], -1).flatten()
    assert torch.allclose(full.log_probs(chosen), picked - 7.0)
    with pytest.raises(ValueError, match="temperature must be 1"):
        full.log_probs(chosen, temperature=0.5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax(temperature: float) -> None:
    # 20,000 draws of the same 24 slots; chi-square against the softmax. At most 9 degrees of freedom:
    # 40 is exceeded with a probability of 1e-5 per slot.
    num_draws = 20_000
    logits = random_logits()
    drawn = AnswerLogits(
        logits.spatial.expand(num_draws, -1, -1, -1), logits.heading.expand(num_draws, -1, -1)
    ).sample(temperature, torch.Generator().manual_seed(2))
    scaled = AnswerLogits(logits.spatial / temperature, logits.heading / temperature)
    for slot in range(24):
        actions = range(NUM_SPATIAL, NUM_SPATIAL + NUM_HEADING) if slot % 3 == 2 else range(NUM_SPATIAL)
        statistic = 0.0
        for action in actions:
            expected = num_draws * probability(scaled, slot, action)
            observed = int((drawn[:, slot] == action).sum())
            statistic += (observed - expected) ** 2 / expected
        assert statistic < 40.0, f"slot {slot}: chi-square {statistic:.1f}"


def test_sampling_works_across_chunks_of_the_table_and_never_draws_the_impossible() -> None:
    # 4000 bins are sampled in chunks of 50. Only bins 49, 50 and 3999 have any probability: 1/2, 1/4, 1/4.
    spatial = torch.full((4000, 8, 2, 4000), -torch.inf)
    spatial[..., 49], spatial[..., [50, 3999]] = math.log(2.0), 0.0
    drawn = AnswerLogits(spatial[:50], torch.zeros(50, 8, 3)).sample(1.0, torch.Generator().manual_seed(0))
    xy = drawn.view(50, 8, 3)[..., :2]
    counts = {bin_index: int((xy == bin_index).sum()) for bin_index in (49, 50, 3999)}
    assert sum(counts.values()) == 800
    assert counts[49] == pytest.approx(400, abs=60)  # 4 standard deviations
    assert counts[50] == pytest.approx(200, abs=50)


def test_temperature_zero_takes_the_most_likely_legal_action() -> None:
    logits = random_logits()
    best = logits.sample(0.0)
    for slot in range(24):
        actions = range(NUM_SPATIAL, NUM_SPATIAL + NUM_HEADING) if slot % 3 == 2 else range(NUM_SPATIAL)
        assert int(best[slot]) == max(actions, key=lambda a, s=slot: probability(logits, s, a))


def test_cross_entropy_is_the_mean_over_all_slots() -> None:
    logits, targets = random_logits(2, 1), random_targets(2, 1)
    loss = answer_cross_entropy(logits, targets)
    log_probs = logits.log_probs(targets).view(2, 1, 8, 3)
    assert float(loss.total) == pytest.approx(-float(log_probs.mean()), abs=1e-6)
    assert float(loss.spatial_nll) == pytest.approx(-float(log_probs[..., :2].mean()), abs=1e-6)
    assert float(loss.heading_nll) == pytest.approx(-float(log_probs[..., 2].mean()), abs=1e-6)


def test_cross_entropy_falls_when_the_target_becomes_likelier() -> None:
    logits, targets = random_logits(1, 1), random_targets(1, 1)
    spatial = logits.spatial.clone().requires_grad_()
    answer_cross_entropy(AnswerLogits(spatial, logits.heading), targets).total.backward()
    target_bins = targets.view(1, 1, 8, 3)[..., :2, None]
    assert (spatial.grad.gather(-1, target_bins) < 0.0).all()


@pytest.mark.parametrize("is_full_vocabulary", [False, True])
def test_label_smoothing_is_the_cross_entropy_against_a_gaussian(is_full_vocabulary: bool) -> None:
    logits, targets = random_logits(2, 1), random_targets(2, 1)
    if is_full_vocabulary:
        logits = logits._replace(log_normalizer=torch.full((2, 1, 24), 5.0))
    sigma, expected = 0.8, 0.0
    for b in range(2):
        row = AnswerLogits(logits.spatial[b, 0], logits.heading[b, 0])
        for slot, target in enumerate(targets[b, 0].tolist()):
            pose, field = divmod(slot, 3)
            first, size = (NUM_SPATIAL, NUM_HEADING) if field == 2 else (0, NUM_SPATIAL)
            values = row.heading[pose] if field == 2 else row.spatial[pose, field]
            log_z = 5.0 if is_full_vocabulary else math.log(sum(math.exp(v) for v in values))
            near = [i for i in range(size) if abs(i + first - target) <= 3]  # ceil(3 * 0.8) = 3 bins
            weights = [math.exp(-0.5 * ((i + first - target) / sigma) ** 2) for i in near]
            terms = [w * (log_z - float(values[i])) for w, i in zip(weights, near, strict=True)]
            expected += sum(terms) / sum(weights)
    loss = answer_cross_entropy(logits, targets, label_smoothing_bins=sigma)
    assert float(loss.total) == pytest.approx(expected / 48, abs=1e-5)


def test_inverse_ratio_weights_each_row_by_its_mask_ratio() -> None:
    is_masked = torch.tensor([[True] * 6 + [False] * 18])
    weights = masked_pair_weights(is_masked, torch.tensor([0.25]), "inverse_ratio")
    # The first row masks a quarter: 1 / 0.25; its complement 1 / 0.75; halved, as a pair is one sample.
    assert weights[0, 0, 0] == pytest.approx(2.0)
    assert weights[0, 0, -1] == pytest.approx(2.0 / 3.0)
    assert masked_pair_weights(is_masked, torch.tensor([0.25])) is None
    with pytest.raises(ValueError, match="unknown loss weight 'x'"):
        masked_pair_weights(is_masked, torch.tensor([0.25]), "x")


def test_mask_ratios_are_stratified() -> None:
    ratios = sample_mask_ratios(64, torch.Generator().manual_seed(0))
    parts = ((ratios - 1e-3) / (1 - 1e-3) * 64).long()
    assert sorted(parts.tolist()) == list(range(64))
    assert parts.tolist() != list(range(64))


@pytest.mark.parametrize("noise", ["bernoulli", "count"])
def test_every_row_has_a_masked_slot_and_the_right_share(noise: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for ratio in (1e-3, 0.3, 0.9, 1.0):
        masks = sample_masks(torch.full((4000,), ratio), 24, noise, generator)
        assert masks.any(dim=-1).all()
        if noise == "count":
            assert (masks.sum(-1) == math.ceil(ratio * 24 - 1e-6)).all()
        elif ratio > 0.1:  # standard error of the mean over 96,000 slots is below 0.002
            assert float(masks.float().mean()) == pytest.approx(ratio, abs=0.01)
    with pytest.raises(ValueError, match="unknown noise 'x'"):
        sample_masks(torch.ones(1), 24, "x")


def test_a_complementary_pair_masks_every_slot_exactly_once() -> None:
    actions = random_targets(5)
    is_masked = sample_masks(sample_mask_ratios(5), 24)
    rows = complementary_rows(is_masked)
    noisy = mask_actions(actions[:, None], rows)
    assert ((noisy == MASKED).sum(dim=1) == 1).all()
    assert (torch.where(noisy[:, 0] == MASKED, noisy[:, 1], noisy[:, 0]) == actions).all()
    scored = rows.gather(1, pair_scored_row(is_masked))
    assert scored.all()
