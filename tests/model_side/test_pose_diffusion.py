"""The diffusion-head baseline: schedule, DDIM and densities against formulas, and the network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_models import make_inputs, make_model
from torch.distributions import Normal

from drivefine_agent.diffusion.continuous import (
    DDIMOptions,
    add_noise,
    chain_log_probs,
    ddim_step,
    denormalise,
    normalise,
    sample_chain,
    signal_shares,
)
from drivefine_agent.model.backbone.block_moe import segment_mask
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.model.pose_head import PromptStates
from drivefine_agent.pose_diffusion import plan_poses
from drivefine_agent.training.demonstrations import Batch
from drivefine_agent.training.objectives import noise_loss


def head_model(**overrides: object) -> DriveFineModel:
    return make_model(decoder_type="diffusion_head", n_refine=0, **overrides)


def states_of(model: DriveFineModel, lengths: torch.Tensor | None = None) -> PromptStates:
    tiles, context_ids, instruction_ids, _ = make_inputs(model)
    return model.prompt_states(context_ids, instruction_ids, lengths, model.encode_images(tiles))


def test_the_cosine_schedule_by_its_closed_form() -> None:
    """The product of 1 - beta telescopes; only the last beta is cut, to 0.999."""

    def cosine(degrees: float) -> float:
        return math.cos(math.radians(degrees)) ** 2

    shares = signal_shares().tolist()
    assert len(shares) == 100
    # t = 49: (0.50 + 0.008) / 1.008 of 90 degrees; at the start 0.008 / 1.008 of them.
    assert shares[49] == pytest.approx(cosine(45.357142857) / cosine(0.714285714), abs=1e-9)
    assert shares[80] == pytest.approx(cosine(73.035714286) / cosine(0.714285714), abs=1e-9)
    assert shares[99] == pytest.approx(0.001 * shares[98], abs=1e-15)
    assert DDIMOptions().times == (80, 60, 40, 20, 0)
    with pytest.raises(ValueError, match="must divide 100, got 7"):
        DDIMOptions(num_steps=7)


def test_normalisation_by_hand() -> None:
    poses = np.array([[-1.57, -19.68, -1.67], [65.17, 22.32, 1.86], [31.8, 1.32, 0.095], [99.0, -30.0, 3.0]])
    wanted = np.array([[-1, -1, -1], [1, 1, 1], [0, 0, 0], [1, -1, 1]])
    np.testing.assert_allclose(normalise(poses), wanted, atol=1e-12)
    np.testing.assert_allclose(denormalise(wanted[:3].astype(float)), poses[:3], atol=1e-12)


@pytest.mark.parametrize("options", [DDIMOptions(), DDIMOptions(eta=1.0), DDIMOptions(num_steps=20)])
def test_ddim_with_perfect_knowledge_of_the_noise_ends_at_the_clean_trajectory(options: DDIMOptions) -> None:
    clean = torch.rand(2, 3, 8, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def perfect(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        share = signal_shares()[times][:, None, None]
        return (noisy - share.sqrt() * clean) / (1 - share).sqrt()

    chain = sample_chain(perfect, 2, 3, options, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(chain[:, :, -1].float(), clean, rtol=0, atol=1e-5)
    noisy = add_noise(clean, chain[:, :, 0], torch.full((2, 3), 80))
    assert (noisy - clean).abs().mean() > 0.5


def test_a_step_at_eta_1_is_the_posterior_of_the_forward_process() -> None:
    """DDPM's q(x_t-1 | x_t, x_0), Ho et al. 2020 equations 6 and 7, at adjacent times."""
    options, shares = DDIMOptions(num_steps=100, eta=1.0), signal_shares()
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(1, 1, 8, 3, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(1, 1, 8, 3, generator=generator, dtype=torch.float64)
    for step in (10, 50, 98):
        time = 99 - step
        noisy = add_noise(clean, noise, torch.tensor([[time]]))
        mean, std = ddim_step(noisy, noise, step, options)
        now, after = shares[time], shares[time - 1]
        beta = 1 - now / after
        wanted = (after.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - after) * noisy) / (1 - now)
        torch.testing.assert_close(mean, wanted, rtol=0, atol=1e-10)
        assert std**2 == pytest.approx(float(beta * (1 - after) / (1 - now)), rel=1e-9)


def test_log_densities_of_a_chain_against_torch_distributions() -> None:
    model, options = head_model(), DDIMOptions(eta=1.0, min_std=0.04)
    prompt, status = states_of(model), torch.randn(3, 20, dtype=torch.float64)

    def noise_of(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return model.predict_noise(prompt, noisy, times, status)

    with torch.no_grad():
        chain = sample_chain(noise_of, 3, 2, options, generator=torch.Generator().manual_seed(1)).double()
        together = chain_log_probs(noise_of, chain, options, min_std=0.1)
        assert together.shape == (3, 2, 5, 8, 3)
        for step, time in enumerate(options.times):
            noisy = chain[:, :, step]
            mean, std = ddim_step(noisy, noise_of(noisy, torch.tensor([time, time])), step, options)
            alone = Normal(mean, max(std, 0.1)).log_prob(chain[:, :, step + 1])
            torch.testing.assert_close(together[:, :, step], alone, rtol=0, atol=1e-10)
    assert std == 0.0  # the last step is certain, but for min_std
    last = (chain[:, :, 5] - mean).abs()
    assert 0.0 < last.max() < 0.04 * 5.01


@pytest.mark.parametrize("lengths", [None, torch.tensor([11, 7, 9])])
def test_the_prompts_states_equal_one_pass_under_one_mask(lengths: torch.Tensor | None) -> None:
    model = head_model()
    tiles, context_ids, instruction_ids, _ = make_inputs(model)
    with torch.no_grad():
        states = states_of(model, lengths)
        context = model.embed_context(context_ids, model.encode_images(tiles))  # two more: visual tokens
        instruction = model.embeddings(instruction_ids).expand(3, -1, -1)
        places = torch.arange(13).expand(3, -1)
        ends = torch.full((3, 1), 13) if lengths is None else lengths[:, None] + 2
        segments = torch.cat([torch.where(places < ends, 0, -1), torch.ones(3, 5, dtype=torch.long)], dim=1)
        wanted = model.backbone.one_pass(
            torch.cat([context, instruction], dim=1),
            torch.cat([places, ends + torch.arange(5)], dim=1),
            segment_mask(segments, torch.zeros_like(segments)),
        )
    assert (states.key_mask is None) == (lengths is None)
    seen = segments >= 0 if states.key_mask is None else states.key_mask
    assert torch.equal(seen, segments >= 0)
    torch.testing.assert_close(states.hidden[seen], wanted[seen], rtol=0, atol=1e-10)


def test_padded_prompts_and_more_samples_change_nothing() -> None:
    model, lengths = head_model(), torch.tensor([11, 7, 9])
    tiles, context_ids, instruction_ids, _ = make_inputs(model)
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(3, 2, 8, 3, generator=generator, dtype=torch.float64)
    status = torch.randn(3, 20, generator=generator, dtype=torch.float64)
    times = torch.tensor([80, 20])
    with torch.no_grad():
        visual = model.encode_images(tiles)
        prompt = model.prompt_states(context_ids, instruction_ids, lengths, visual)
        together = model.predict_noise(prompt, noisy, times, status)
        for scene, length in enumerate(lengths.tolist()):
            one = slice(scene, scene + 1)
            alone = model.prompt_states(context_ids[one, :length], instruction_ids, None, visual[one])
            for row in range(2):
                part = model.predict_noise(
                    alone, noisy[one, row : row + 1], times[row : row + 1], status[one]
                )
                torch.testing.assert_close(together[one, row : row + 1], part, rtol=0, atol=1e-10)
        other = model.predict_noise(prompt, noisy, times, status + 1.0)
    assert (together - other).abs().min() > 0.0  # every number depends on the ego status


@pytest.fixture
def four() -> Batch:
    """Four scenes that differ in speed and bend; their images and texts are random."""
    model = DriveFineModel(DriveFineConfig.debug(decoder_type="diffusion_head", n_refine=0))
    tiles, context_ids, _, _ = make_inputs(model, num_scenes=4)
    speeds, seconds = np.array([2.0, 5.0, 8.0, 12.0]), np.arange(1, 9) * 0.5
    poses = np.stack(
        [np.outer(speeds, seconds), np.outer([0.0, 0.5, -0.2, 0.1], seconds**2), np.zeros((4, 8))], axis=-1
    )
    status = torch.zeros(4, 20)
    status[:, 0] = torch.from_numpy(speeds)
    return Batch(tiles, context_ids, None, torch.zeros(4, 24), poses, status=status)


@pytest.mark.parametrize("train_language", [False, True])
def test_the_loss_is_the_error_of_the_noise_and_reaches_what_is_trained(
    four: Batch, train_language: bool
) -> None:
    model, ids = head_model(dtype=torch.float32), torch.tensor([3, 4, 5])
    loss = noise_loss(
        model,
        four,
        ids,
        torch.Generator().manual_seed(7),
        2,
        train_vision=False,
        train_language=train_language,
    ).total
    loss.backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"pose_head"} | ({"embeddings", "backbone"} if train_language else set())
    generator = torch.Generator().manual_seed(7)
    times = torch.randint(100, (4, 2), generator=generator)
    noise = torch.randn(4, 2, 8, 3, generator=generator)
    with torch.no_grad():
        prompt = model.prompt_states(four.context_ids, ids, None, model.encode_images(four.tiles))
        for scene in range(4):
            for row in range(2):
                share = float(signal_shares()[times[scene, row]])
                clean = torch.from_numpy(normalise(four.poses[scene])).float()
                noisy = share**0.5 * clean + (1 - share) ** 0.5 * noise[scene, row]
                one = PromptStates(prompt.hidden[scene : scene + 1], None)
                said = model.predict_noise(
                    one, noisy[None, None], times[scene, row][None], four.status[scene : scene + 1]
                )
                loss = loss - (said - noise[scene, row]).square().mean() / 8
    assert abs(loss.item()) < 1e-5


def test_the_head_learns_four_trajectories_by_heart(four: Batch) -> None:
    torch.manual_seed(0)
    model = DriveFineModel(DriveFineConfig.debug(decoder_type="diffusion_head", n_refine=0))
    with torch.no_grad():
        prompt = model.prompt_states(
            four.context_ids, torch.tensor([3, 4, 5]), None, model.encode_images(four.tiles)
        )
    clean = torch.from_numpy(normalise(four.poses)).float()[:, None]
    optimizer = torch.optim.AdamW(model.parameters_of("pose_head"), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for step in range(400):
        times, noise = torch.randint(100, (4, 32)), torch.randn(4, 32, 8, 3)
        said = model.predict_noise(prompt, add_noise(clean, noise, times), times, four.status)
        loss = (said - noise).square().mean()
        if step == 0:
            assert loss.item() == pytest.approx(1.0, abs=0.1)  # the output starts at zero
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    planned = plan_poses(model, prompt, four.status, 3, generator=torch.Generator().manual_seed(5))
    errors_m = np.linalg.norm((planned - four.poses[:, None])[..., :2], axis=-1)
    assert errors_m.mean() < 0.7
