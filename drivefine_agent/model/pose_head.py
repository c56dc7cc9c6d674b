"""The diffusion-head baseline's network: a small transformer over the 8 poses of a noisy trajectory.

A DiT (Peebles and Xie 2023) in the form of ReCogDrive's planner (`model.md` 5.4): blocks take turns in
attention among the poses and attention to the language model's last hidden states of the prompt; time and
ego status enter as scales, shifts and gates of every block (adaLN-zero).

Shapes: B scenes, N noisy trajectories per scene, P prompt tokens, W width, poses (8, 3).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from drivefine_agent.constants import NUM_POSE_FIELDS, NUM_POSES
from drivefine_agent.model.config import DriveFineConfig

NUM_STATUS = 20
"""Numbers of the ego status, see `prompt.ego_status`."""
_STATUS_SCALE = 0.1  # metres and metres per second of everyday driving become numbers near 1
_TIME_CHANNELS = 256


class PromptStates(NamedTuple):
    """What a diffusion head reads of a prompt."""

    hidden: Tensor
    """(B, P, D) last hidden states, normed."""
    key_mask: Tensor | None
    """(B, P) True where the prompt is not padding; None: nothing is padded."""


class PoseHead(nn.Module):
    """See the module's doc-string."""

    def __init__(self, config: DriveFineConfig) -> None:
        super().__init__()
        width = config.head_width
        self.prompt_in = nn.Linear(config.text_config.hidden_size, width)
        self.pose_in = nn.Linear(NUM_POSE_FIELDS, width)
        self.places = nn.Parameter(torch.zeros(NUM_POSES, width))
        self.time_in = nn.Sequential(nn.Linear(_TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))
        self.status_in = nn.Sequential(nn.Linear(NUM_STATUS, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            PoseBlock(width, config.head_heads, reads_prompt=i % 2 == 1) for i in range(config.head_blocks)
        )
        self.modulation = nn.Linear(width, 2 * width)
        self.pose_out = nn.Linear(width, NUM_POSE_FIELDS)

    def initialise(self) -> None:
        """Variance-preserving matrices; modulations and output start at zero: every block as the identity."""
        init.normal_(self.places, mean=0.0, std=1.0)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
                init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, (PoseHead, PoseBlock)):
                init.zeros_(module.modulation.weight)
        init.zeros_(self.pose_out.weight)

    def forward(self, prompt: PromptStates, noisy: Tensor, times: Tensor, status: Tensor) -> Tensor:
        """The noise in noisy trajectories.

        Args:
          prompt: of B scenes.
          noisy: (B, N, 8, 3) normalised.
          times: (B, N) or (N,) times of the forward process.
          status: (B, 20) ego status.

        Returns:
          (B, N, 8, 3) float32 or better.
        """
        dtype = self.pose_in.weight.dtype
        memory = self.prompt_in(prompt.hidden)  # (B, P, W)
        visible = None if prompt.key_mask is None else prompt.key_mask[:, None, None]
        scaled = (status * _STATUS_SCALE).to(dtype)
        condition = self.time_in(time_features(times).to(dtype)) + self.status_in(scaled)[:, None]
        condition = F.silu(condition)[:, :, None]  # (B, N, 1, W)
        hidden = self.pose_in(noisy.to(dtype)) + self.places  # (B, N, 8, W)
        for block in self.blocks:
            hidden = block(hidden, condition, memory, visible)
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        predicted = self.pose_out(_modulated(hidden, shift, scale))
        return predicted.to(torch.promote_types(predicted.dtype, torch.float32))


class PoseBlock(nn.Module):
    """Attention, among the poses of a trajectory or to the prompt, then SwiGLU; adaLN-zero."""

    def __init__(self, width: int, num_heads: int, reads_prompt: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.reads_prompt = reads_prompt
        self.queries = nn.Linear(width, width)
        self.keys_values = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.gate_up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, hidden: Tensor, condition: Tensor, memory: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, 8, W).

        Args:
          hidden: (B, N, 8, W).
          condition: (B, N, 1, W).
          memory: (B, P, W) of the prompt.
          visible: (B, 1, 1, P) bool, None: all of it.
        """
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(condition).chunk(6, dim=-1)
        normed = _modulated(hidden, shift, scale)
        # To the prompt, the 8 N poses of a scene are queries side by side; nothing of the prompt is copied.
        queries = normed.flatten(1, 2) if self.reads_prompt else normed.flatten(0, 1)
        attended = self._attend(
            queries,
            memory if self.reads_prompt else queries,
            visible if self.reads_prompt else None,
        )
        hidden = hidden + gate * attended.view(hidden.shape)
        gated, up = self.gate_up(_modulated(hidden, shift_2, scale_2)).chunk(2, dim=-1)
        return hidden + gate_2 * self.down(F.silu(gated) * up)

    def _attend(self, queries: Tensor, keys: Tensor, visible: Tensor | None) -> Tensor:
        """(M, Q, W) of queries (M, Q, W) and keys (M, P, W)."""
        parts = (self.queries(queries), *self.keys_values(keys).chunk(2, dim=-1))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.out(attended.transpose(1, 2).flatten(2))


def time_features(times: Tensor) -> Tensor:
    """(..., 256) cosines, then sines, of times (...); periods from 2 pi to 20 000 pi."""
    half = _TIME_CHANNELS // 2
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half, device=times.device) / half)
    angles = times[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _modulated(hidden: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:]) * (1.0 + scale) + shift
