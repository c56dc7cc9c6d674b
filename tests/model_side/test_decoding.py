"""The denoising loop, on a hand-made model and on the real one."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_inputs, make_model

from drivefine_agent.actions import MASKED
from drivefine_agent.answer import AnswerLogits
from drivefine_agent.diffusion.decoding import ORDERS, DecodingOptions, DenoisingTrace, decode, read_out
from drivefine_agent.diffusion.schedule import SCHEDULES


class FixedModel:
    """The same logits whatever the answer holds; records the answers it was asked about.

    Slot l prefers action (l mod 5) of its table, with a confidence that grows with `sharpness[l]`.
    """

    def __init__(self, sharpness: torch.Tensor) -> None:
        self.seen: list[torch.Tensor] = []
        preferred, sharpness = (torch.arange(24) % 5).view(8, 3, 1), sharpness.view(8, 3, 1)
        self.spatial = torch.zeros(8, 2, 10).scatter_(-1, preferred[:, :2], sharpness[:, :2])
        self.heading = torch.zeros(8, 6).scatter_(-1, preferred[:, 2], sharpness[:, 2])

    def __call__(self, actions: torch.Tensor) -> AnswerLogits:
        self.seen.append(actions.clone())
        lead = actions.shape[:-1]
        return AnswerLogits(self.spatial.expand(*lead, -1, -1, -1), self.heading.expand(*lead, -1, -1))


def check_trace(trace: DenoisingTrace, options: DecodingOptions, seen: list[torch.Tensor]) -> None:
    """Properties every trace must have."""
    assert (trace.actions != MASKED).all()
    for step, quota in enumerate(options.quotas):
        assert ((trace.step_map == step).sum(-1) == quota).all()
        assert (trace.state_before(step) == seen[step]).all()  # hence committed tokens never change
    assert (trace.log_probs <= 0.0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", range(1, 25))
def test_traces_are_consistent(schedule: str, num_steps: int) -> None:
    model = FixedModel(torch.rand(24, generator=torch.Generator().manual_seed(0)) * 3)
    for order in ORDERS:
        model.seen.clear()
        options = DecodingOptions(
            num_steps=num_steps, schedule=schedule, order=order, temperature=1.0, num_samples=3
        )
        trace = decode(model, 2, options, generator=torch.Generator().manual_seed(1))
        assert trace.actions.shape == (2, 3, 24)
        assert len(model.seen) == num_steps
        check_trace(trace, options, model.seen)


def test_most_confident_slots_come_first() -> None:
    # Slot 23 is the surest, slot 0 the least sure. One table has 10 entries, the other 6; a sharpness step of
    # 0.5 is not worth that: with preferred logit a the probability is e^a / (e^a + 9) or e^a / (e^a + 5),
    # and e^0.5 = 1.65 < 9 / 5 = 1.8; so compare within the x and y slots, which share one table.
    sharpness = torch.arange(24) * 0.5
    trace = decode(FixedModel(sharpness), 1, DecodingOptions(num_steps=24))
    steps = trace.step_map[0, 0].view(8, 3)[:, :2].flatten()
    assert (steps.diff() < 0).all()
    assert (trace.actions[0, 0] == torch.arange(24) % 5 + torch.tensor([0, 0, 10]).repeat(8)).all()


def test_equal_confidences_are_committed_in_slot_order() -> None:
    trace = decode(FixedModel(torch.zeros(24)), 1, DecodingOptions(num_steps=24))
    steps = trace.step_map[0, 0].view(8, 3)
    # Headings have fewer actions, so uniform guesses are surer there; then x and y in order.
    assert steps[:, 2].tolist() == list(range(8))
    assert steps[:, :2].flatten().tolist() == list(range(8, 24))


def test_recorded_log_probs_are_those_at_the_committing_step() -> None:
    model = make_model(dtype=torch.float32)
    inputs = make_inputs(model)
    with torch.no_grad():
        prompt = model.prefill(inputs.tiles, inputs.context_ids, inputs.instruction_ids)
        options = DecodingOptions(num_steps=6, temperature=1.0, num_samples=4)
        trace = decode(
            lambda a: model.answer_logits(prompt, a), 3, options, generator=torch.Generator().manual_seed(0)
        )
        for step in range(6):
            log_probs = model.answer_logits(prompt, trace.state_before(step)).log_probs(trace.actions)
            is_now = trace.step_map == step
            assert (log_probs - trace.log_probs)[is_now].abs().max() < 1e-5


def test_temperature_zero_is_deterministic_and_temperature_one_follows_its_seed() -> None:
    model = make_model(dtype=torch.float32)
    inputs = make_inputs(model)
    with torch.no_grad():
        prompt = model.prefill(inputs.tiles, inputs.context_ids, inputs.instruction_ids)

        def run(options: DecodingOptions, seed: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(seed)
            return decode(lambda a: model.answer_logits(prompt, a), 3, options, generator=generator).actions

        greedy = DecodingOptions()
        assert (run(greedy, 0) == run(greedy, 1)).all()
        random = DecodingOptions(temperature=1.0, num_samples=8)
        assert (run(random, 0) == run(random, 0)).all()
        assert (run(random, 0) != run(random, 1)).any()
        samples = run(random, 0)
        assert (samples[:, 0] != samples[:, 1]).any()


@pytest.mark.parametrize("slot_restricted", [True, False])
def test_every_slot_gets_an_action_of_its_own_table(slot_restricted: bool) -> None:
    model = make_model(dtype=torch.float32, slot_restricted=slot_restricted)
    inputs = make_inputs(model)
    with torch.no_grad():
        prompt = model.prefill(inputs.tiles, inputs.context_ids, inputs.instruction_ids)
        options = DecodingOptions(temperature=5.0, num_samples=50)
        actions = decode(lambda a: model.answer_logits(prompt, a), 3, options).actions.view(3, 50, 8, 3)
    bins = model.config.spatial_bins
    assert ((actions[..., :2] >= 0) & (actions[..., :2] < bins)).all()
    assert ((actions[..., 2] >= bins) & (actions[..., 2] < bins + model.config.heading_bins)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, r"1\.\.24.*got 0"),
        ({"num_steps": 25}, r"1\.\.24.*got 25"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'"),
        ({"schedule": "shift", "shift_alpha": -1.0}, "shift_alpha must be positive"),
        ({"order": "entropy"}, "unknown order 'entropy'.*confidence"),
        ({"temperature": -0.1}, "must not be negative"),
        ({"refine_temperature": -0.1}, "must not be negative"),
        ({"refine_readout": "mean"}, "unknown refine_readout 'mean'.*median"),
        ({"num_samples": 0}, "at least 1, got 0"),
        ({"num_samples": 4}, "copies of one answer: raise temperature"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_contradictory_options_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodingOptions(**settings)


def test_the_refiner_is_read_out_by_its_medians_or_its_modes() -> None:
    # x, y: 0.4 at bin 0, 0.3 at bin 2, 0.3 at bin 3: mode 0, median 2. Heading: 0.2, 0.2, 0.6: both bin 2.
    spatial = torch.tensor([0.4, 0.0, 0.3, 0.3]).log().expand(1, 1, 8, 2, 4)
    heading = torch.tensor([0.2, 0.2, 0.6]).log().expand(1, 1, 8, 3)
    logits = AnswerLogits(spatial, heading)
    median = read_out(logits, DecodingOptions(refine_readout="median")).view(8, 3)
    mode = read_out(logits, DecodingOptions(refine_readout="mode")).view(8, 3)
    assert median.tolist() == [[2, 2, 4 + 2]] * 8
    assert mode.tolist() == [[0, 0, 4 + 2]] * 8
    sampled = read_out(logits, DecodingOptions(refine_temperature=1.0), torch.Generator().manual_seed(0))
    assert set(sampled.view(8, 3)[:, :2].flatten().tolist()) <= {0, 2, 3}  # bin 1 has probability zero


def test_a_second_pass_masks_the_least_certain_slots_and_fills_them_in_once_more() -> None:
    sharpness = torch.rand(24, generator=torch.Generator().manual_seed(3)) * 4
    others = torch.tensor([9.0, 9.0, 5.0]).repeat(8)  # actions of the slot's table that are not preferred
    certainty = sharpness.exp() / (sharpness.exp() + others)
    weakest = set(certainty.argsort()[:7].tolist())

    class ChangingModel(FixedModel):
        """In its fifth call, all slots prefer action 3."""

        def __call__(self, actions: torch.Tensor) -> AnswerLogits:
            logits = super().__call__(actions)
            if len(self.seen) < 5:
                return logits
            return AnswerLogits(logits.spatial.clone().index_fill(-1, torch.tensor([3]), 9.0), logits.heading)

    model = ChangingModel(sharpness)
    options = DecodingOptions(num_steps=4, second_pass=7)
    trace = decode(model, 1, options)
    once = decode(FixedModel(sharpness), 1, DecodingOptions(num_steps=4))
    assert len(model.seen) == 5
    asked = model.seen[4][0, 0]
    assert {slot for slot in range(24) if asked[slot] == MASKED} == weakest
    for slot in range(24):
        is_position = slot % 3 != 2
        changed = 3 if slot in weakest and is_position else int(once.actions[0, 0, slot])
        assert trace.actions[0, 0, slot] == changed
        assert (trace.step_map[0, 0, slot] == 4) == (slot in weakest)
    with pytest.raises(ValueError, match=r"second_pass must be in 0\.\.24, the number of slots, got 25"):
        DecodingOptions(second_pass=25)


@torch.no_grad()
def test_a_second_pass_of_the_real_model_of_open_slots_equals_that_of_all_slots() -> None:
    model = make_model()
    prompt = model.prefill(*make_inputs(model)[:3])
    options = DecodingOptions(num_steps=4, second_pass=5, refine=False)
    few = decode(lambda actions: model.open_slot_logits(prompt, actions), 3, options)
    full = decode(lambda actions: model.answer_logits(prompt, actions), 3, options)
    assert torch.equal(few.actions, full.actions)
    assert (few.step_map == 4).sum(-1).unique().tolist() == [5]
