"""One transformer block: pre-norm, bidirectional attention over a prefix, SwiGLU; Llama's weight names.

Our own because the block is the heart of what we build and transformers' layer is silently causal without a
mask and drops the prompt's keys and values under checkpointing. Norm and rotary embedding are computed in
float32 or better, as in LLaDA, whatever the dtype of the weights.

Shapes: N sequences, P prefix length, Q own length, D width, H heads, K key-value heads, E head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drivefine_agent.model.backbone.attention import AttentionMask, AttentionName, attend

if TYPE_CHECKING:
    from transformers import LlamaConfig


class KeysValues(NamedTuple):
    """Rotated keys and values of a segment in one block."""

    keys: Tensor
    """(N, K, P, E)."""
    values: Tensor
    """(N, K, P, E)."""


class Rotary(NamedTuple):
    """Rotary position tables of a segment."""

    cos: Tensor
    """(N or 1, 1, Q, E) float32."""
    sin: Tensor


def rotary_tables(positions: Tensor, config: LlamaConfig) -> Rotary:
    """Tables for integer positions (N or 1, Q): cos and sin of position / theta^(2i / E), halves repeated.

    Computed where they are needed instead of kept in a buffer: a non-persistent buffer is garbage after
    `from_pretrained`, which builds the model on the meta device.
    """
    width = head_width(config)
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    # The reciprocal first, as in LLaDA: rounded in the other order, angles near position 2000 move 1e-4.
    frequencies = 1.0 / _rope_theta(config) ** exponents
    angles = positions[..., None].float() * frequencies  # (N, Q, E / 2)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return Rotary(angles.cos(), angles.sin())


def _rope_theta(config: LlamaConfig) -> float:
    parameters: Any = config.rope_parameters
    return float(parameters["rope_theta"])


def head_width(config: LlamaConfig) -> int:
    """E: width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class RMSNorm(nn.Module):
    """x / rms(x) in float32 or better, cast back, then scaled."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor, frozen: bool = False) -> Tensor:
        """Normalised (..., D). With `frozen` the weight gets no gradient but the input does."""
        weight = self.weight.detach() if frozen else self.weight
        if hidden.dtype in (torch.bfloat16, torch.float16):
            return weight * F.rms_norm(hidden.float(), hidden.shape[-1:], None, self.eps).to(hidden.dtype)
        return F.rms_norm(hidden, hidden.shape[-1:], weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention of a segment over a prefix and itself; never causal."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads or config.num_attention_heads
        self.width = head_width(config)
        if self.num_heads % self.num_kv_heads != 0:
            raise ValueError(
                f"num_attention_heads ({self.num_heads}) must be divisible by num_key_value_heads "
                f"({self.num_kv_heads})"
            )
        self.attention: AttentionName = "sdpa"  # which kernel; no part of a checkpoint
        hidden = config.hidden_size
        self.q_proj = nn.Linear(hidden, self.num_heads * self.width, bias=False)
        self.k_proj = nn.Linear(hidden, self.num_kv_heads * self.width, bias=False)
        self.v_proj = nn.Linear(hidden, self.num_kv_heads * self.width, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.width, hidden, bias=False)

    def keys_values(self, hidden: Tensor, rotary: Rotary) -> KeysValues:
        """Rotated keys and plain values of (N, Q, D)."""
        keys = self.k_proj(hidden).unflatten(-1, (self.num_kv_heads, self.width)).transpose(1, 2)
        values = self.v_proj(hidden).unflatten(-1, (self.num_kv_heads, self.width)).transpose(1, 2)
        return KeysValues(_rotate(keys, rotary), values)

    def forward(
        self,
        hidden: Tensor,
        rotary: Rotary,
        own: KeysValues,
        prefix: KeysValues | None,
        mask: AttentionMask,
        past: KeysValues | None = None,
    ) -> Tensor:
        """(N, Q, D) attention output; arguments as in `Block.forward`, `own` of the segment itself."""
        queries = self.q_proj(hidden).unflatten(-1, (self.num_heads, self.width)).transpose(1, 2)
        num_sequences = len(own.keys)
        before = [] if prefix is None else [KeysValues(*(_repeat_rows(x, num_sequences) for x in prefix))]
        parts = [*before, *([] if past is None else [past]), own]
        keys = own.keys if len(parts) == 1 else torch.cat([part.keys for part in parts], dim=2)
        values = own.values if len(parts) == 1 else torch.cat([part.values for part in parts], dim=2)
        attended = attend(_rotate(queries, rotary), keys, values, mask, self.attention)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D)."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Block(nn.Module):
    """Pre-norm transformer block over one segment."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        hidden: Tensor,
        rotary: Rotary,
        prefix: KeysValues | None = None,
        mask: AttentionMask = None,
        keys_values_only: bool = False,
        past: KeysValues | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Runs a segment through the block.

        Args:
          hidden: (N, Q, D).
          rotary: tables of the segment's positions, for N sequences or 1.
          prefix: keys and values of everything before, of N sequences, or of N / R, each then copied for R
            rows.
          mask: bool, broadcastable to (N, H, Q, P + Q), True where attention is allowed, as `kernel_mask`
            gives it to the block's kernel; None: everywhere.
          keys_values_only: skip the output, for the last block over a prompt; `hidden` is then returned
            unchanged.
          past: keys and values of N sequences between the prefix and the segment, for decoding one token
            after another.

        Returns:
          (N, Q, D) and the segment's own keys and values.
        """
        normed = self.input_layernorm(hidden)
        own = self.self_attn.keys_values(normed, rotary)
        if keys_values_only:
            return hidden, own
        hidden = hidden + self.self_attn(normed, rotary, own, prefix, mask, past)
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), own


def _rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotary embedding (rotate-half form) of (N, H, Q, E), in float32 or better."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first, second = wide.chunk(2, dim=-1)
    return (wide * rotary.cos + torch.cat([-second, first], dim=-1) * rotary.sin).to(x.dtype)


def _repeat_rows(prefix: Tensor, num_sequences: int) -> Tensor:
    """(N, K, P, E) from (N / R, K, P, E): each prefix R times in a row."""
    if len(prefix) == num_sequences:
        return prefix
    return prefix[:, None].expand(-1, num_sequences // len(prefix), -1, -1, -1).flatten(0, 1)
