"""Attention kernels by name. Never causal by itself: who may see whom is said by a mask, or by none.

`sdpa`: torch chooses among its kernels. `flash`: fused kernels only, flash attention where it applies (no
mask on CUDA) and the memory-efficient one elsewhere; never the one that writes out all scores. `flex`:
block-sparse flex attention, which skips what a mask forbids; compiled on CUDA, on the CPU only for inference
and tests.

Shapes: N sequences, H heads, K key-value heads, Q queries, P keys, E head width.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

AttentionName = Literal["sdpa", "flash", "flex"]
ATTENTIONS: tuple[str, ...] = get_args(AttentionName)

AttentionMask = Tensor | BlockMask | None
"""Of one kernel, see `kernel_mask`; None: everyone sees everyone."""

FUSED_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, attention: AttentionName = "sdpa"
) -> Tensor:
    """softmax(queries keys^T / sqrt(E)) values.

    Args:
      queries: (N, H, Q, E).
      keys: (N, K, P, E); H is a multiple of K.
      values: (N, K, P, E).
      mask: from `kernel_mask` for the same kernel.
      attention: which kernel.

    Returns:
      (N, H, Q, E).

    Raises:
      ValueError: flex attention with gradients on the CPU, which torch does not have.
    """
    is_grouped = queries.shape[1] != keys.shape[1]
    if attention == "flex":
        return _flex(queries, keys, values, mask, is_grouped)
    assert not isinstance(mask, BlockMask)
    if attention == "flash":
        with sdpa_kernel(FUSED_KERNELS, set_priority=True):
            return _sdpa(queries, keys, values, mask, is_grouped)
    return _sdpa(queries, keys, values, mask, is_grouped)


def kernel_mask(mask: Tensor | None, num_queries: int, attention: AttentionName) -> AttentionMask:
    """A mask as a kernel wants it; make it once for all blocks.

    Args:
      mask: bool (N or 1, 1, Q or 1, P), True where attention is allowed; None: everywhere.
      num_queries: Q.
      attention: which kernel.
    """
    if mask is None or attention != "flex":
        return mask
    num_sequences, _, _, num_keys = mask.shape
    allowed = mask[:, 0].expand(-1, num_queries, -1)

    def is_allowed(n: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed[n % num_sequences, query, key]  # one mask may serve all sequences

    return create_block_mask(is_allowed, num_sequences, None, num_queries, num_keys, device=mask.device)


def _sdpa(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, is_grouped: bool) -> Tensor:
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=False, enable_gqa=is_grouped
    )


def _flex(queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, is_grouped: bool) -> Tensor:
    assert not isinstance(mask, Tensor)
    if queries.device.type != "cpu":
        return _compiled_flex()(queries, keys, values, block_mask=mask, enable_gqa=is_grouped)
    if torch.is_grad_enabled() and (queries.requires_grad or keys.requires_grad or values.requires_grad):
        raise ValueError(
            "flex attention has no backward pass on the CPU: train with attention=sdpa, or on a GPU"
        )
    with warnings.catch_warnings():  # uncompiled and hence slow: known, and right for the CPU
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        result = flex_attention(queries, keys, values, block_mask=mask, enable_gqa=is_grouped)
    assert isinstance(result, Tensor)
    return result


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)
