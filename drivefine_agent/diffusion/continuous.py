"""Diffusion of trajectories in metres: noise schedule, normalisation, DDIM. For the diffusion-head baseline.

Knows nothing of images and prompts: it drives any function from noisy trajectories and times to the noise in
them. Constants are ReCogDrive's (`model.md` 1.2 and 5.4): iDDPM's cosine schedule of 100 steps (Nichol and
Dhariwal 2021, equation 17), DDIM (Song et al. 2021, equations 12 and 16) at t = 80, 60, 40, 20, 0.

Shapes: B scenes, N samples, S sampling steps, poses (8, 3).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drivefine_agent.answer import Randomness
from drivefine_agent.constants import NUM_POSE_FIELDS, NUM_POSES

NUM_TIMES = 100
"""Times t = 0 .. 99 of the forward process; a larger t is noisier."""
MAX_NOISE = 5.0
"""Random numbers of the stochastic steps are clipped to this many standard deviations."""

_LEAST = np.array([-1.57, -19.68, -1.67])  # of navtrain's x [m], y [m], heading [rad]
_RANGE = np.array([66.74, 42.0, 3.53])

NoiseModel = Callable[[Tensor, Tensor], Tensor]
"""(B, N, 8, 3) noisy trajectories, (N,) times -> (B, N, 8, 3) the noise in them."""


@dataclass(frozen=True)
class DDIMOptions:
    """How to sample; by default as for driving: deterministic but for the first noise."""

    num_steps: int = 5
    """S; a divisor of 100."""
    eta: float = 0.0
    """Share of the forward process's variance that is put back in each step; 1: as DDPM."""
    min_std: float = 0.0
    """Least standard deviation of a step, so that even the last one explores; RL uses 0.04."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.num_steps < 1 or NUM_TIMES % self.num_steps != 0:
            raise ValueError(f"num_steps must divide {NUM_TIMES}, got {self.num_steps}")
        if not 0.0 <= self.eta <= 1.0 or self.min_std < 0.0:
            raise ValueError(
                f"eta must lie in [0, 1] and min_std not be negative, got {self.eta} and {self.min_std}"
            )

    @property
    def times(self) -> tuple[int, ...]:
        """(S,) from noisy to clean, evenly spaced, the last one 0."""
        apart = NUM_TIMES // self.num_steps
        return tuple(range(NUM_TIMES - apart, -1, -apart))


@functools.cache
def signal_shares() -> Tensor:
    """(100,) float64 alpha-bar: share of the variance at time t that is signal."""

    def cosine(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2.0) ** 2

    kept, product = [], 1.0
    for time in range(NUM_TIMES):
        beta = 1.0 - cosine((time + 1) / NUM_TIMES) / cosine(time / NUM_TIMES)
        product *= 1.0 - min(beta, 0.999)
        kept.append(product)
    return torch.tensor(kept, dtype=torch.float64)


def normalise(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 8, 3) in [-1, 1], clipped, of x [m], y [m], heading [rad]."""
    return np.clip((poses - _LEAST) / _RANGE * 2.0 - 1.0, -1.0, 1.0)


def denormalise(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 8, 3) x [m], y [m], heading [rad] of values in [-1, 1]."""
    return (values + 1.0) / 2.0 * _RANGE + _LEAST


def add_noise(clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """(B, N, 8, 3) the forward process: sqrt(a) clean + sqrt(1 - a) noise at times (B, N)."""
    share = signal_shares().to(clean.device, clean.dtype)[times][..., None, None]
    return share.sqrt() * clean + (1.0 - share).sqrt() * noise


def ddim_step(noisy: Tensor, noise: Tensor, step: int, options: DDIMOptions) -> tuple[Tensor, float]:
    """One step towards less noise: mean (B, N, 8, 3) and standard deviation of the next state.

    The clean trajectory that the step aims at is clipped to [-1, 1], and the noise is what remains then.

    Args:
      noisy: (B, N, 8, 3) at time `options.times[step]`.
      noise: (B, N, 8, 3) predicted.
      step: 0 .. S - 1.
      options: steps and eta; `min_std` is the caller's.
    """
    times, shares = options.times, signal_shares()
    now = float(shares[times[step]])
    after = float(shares[times[step + 1]]) if step + 1 < len(times) else 1.0
    clean = ((noisy - math.sqrt(1.0 - now) * noise) / math.sqrt(now)).clamp(-1.0, 1.0)
    noise = (noisy - math.sqrt(now) * clean) / math.sqrt(1.0 - now)
    std = options.eta * math.sqrt((1.0 - after) / (1.0 - now) * (1.0 - now / after))
    return math.sqrt(after) * clean + math.sqrt(max(0.0, 1.0 - after - std**2)) * noise, std


@torch.no_grad()
def sample_chain(
    model: NoiseModel,
    batch_size: int,
    num_samples: int,
    options: DDIMOptions,
    device: torch.device | str = "cpu",
    generator: Randomness = None,
) -> Tensor:
    """(B, N, S + 1, 8, 3) float32 states from pure noise to the trajectory, normalised.

    Args:
      model: called once per step.
      batch_size: B.
      num_samples: N.
      options: how to sample.
      device: where the states live.
      generator: of the first noise and of the steps' noise.
    """
    shape = (batch_size, num_samples, options.num_steps + 1, NUM_POSES, NUM_POSE_FIELDS)
    noises = random_normal(shape, generator, device)
    states = [noises[:, :, 0]]
    for step, time in enumerate(options.times):
        times = torch.full((num_samples,), time, device=device)
        mean, std = ddim_step(states[-1], model(states[-1], times), step, options)
        drawn = noises[:, :, step + 1].clamp(-MAX_NOISE, MAX_NOISE)
        states.append(mean + max(std, options.min_std) * drawn)
    return torch.stack(states, dim=2)


def chain_log_probs(model: NoiseModel, chain: Tensor, options: DDIMOptions, min_std: float = 0.1) -> Tensor:
    """(B, N, S, 8, 3) log-density of every number of every step's result, all steps in one call of the model.

    Args:
      model: with gradient.
      chain: (B, N, S + 1, 8, 3) from `sample_chain`.
      options: as it was sampled.
      min_std: least standard deviation of the densities; keeps those of the last steps from exploding.
    """
    num_samples, num_steps = chain.shape[1], options.num_steps
    times = torch.tensor(options.times, device=chain.device).repeat(num_samples)  # (N S,)
    noise = model(chain[:, :, :-1].flatten(1, 2), times).unflatten(1, (num_samples, num_steps))
    values = []
    for step in range(num_steps):
        mean, std = ddim_step(chain[:, :, step], noise[:, :, step], step, options)
        std = max(std, min_std)
        deviation = (chain[:, :, step + 1] - mean) / std
        values.append(-0.5 * deviation**2 - math.log(std) - 0.5 * math.log(2.0 * math.pi))
    return torch.stack(values, dim=2)


def random_normal(shape: Sequence[int], generator: Randomness, device: torch.device | str) -> Tensor:
    """(B, ...) float32 standard normal numbers on a device; generators as in `random_uniform`."""
    if not isinstance(generator, Sequence):
        source = device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=source).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"expected one generator for each of {shape[0]} scenes, got {len(generator)}")
    return torch.stack([torch.randn(shape[1:], generator=g, device=g.device) for g in generator]).to(device)
