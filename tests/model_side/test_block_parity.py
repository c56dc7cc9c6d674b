"""Our block against transformers' Llama layer and against the attention it must not be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from drivefine_agent.model.backbone.block import Block, RMSNorm, rotary_tables


def llama_config(num_kv_heads: int = 4) -> LlamaConfig:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=num_kv_heads,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        max_position_embeddings=4096,
    )
    config._attn_implementation = "sdpa"
    return config


def block_pair(config: LlamaConfig, dtype: torch.dtype) -> tuple[Block, LlamaDecoderLayer]:
    """Ours and theirs with the same random weights; loading is strict, so the names agree."""
    torch.manual_seed(0)
    theirs = LlamaDecoderLayer(config, layer_idx=0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name else 0.0))
    ours = Block(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.to(dtype), theirs.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-5)])
@pytest.mark.parametrize("num_kv_heads", [4, 2], ids=["mha", "gqa"])
def test_block_equals_the_bidirectional_llama_layer(
    num_kv_heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    # The Llama layer keeps its rotary tables and norm in float32 even at float64; hence 1e-5 there too.
    config = llama_config(num_kv_heads)
    ours, theirs = block_pair(config, dtype)
    hidden = torch.randn(3, 37, 64, dtype=dtype)
    positions = torch.arange(37)[None]
    tables = LlamaRotaryEmbedding(config)(hidden, positions)
    expected = theirs(hidden, position_embeddings=tables, attention_mask=None, is_causal=False)
    expected = expected[0] if isinstance(expected, tuple) else expected
    got, _ = ours(hidden, rotary_tables(positions, config))
    difference = (got - expected).abs()
    assert difference.max() < tolerance, (
        f"largest difference {difference.max():.2e}, mean {difference.mean():.2e}"
    )


def test_bfloat16_block_is_close_to_float32_far_into_the_sequence() -> None:
    # Rotary tables in bfloat16 drift with the position; ours are float32. A bfloat16 block rounds to 8 bits
    # several times, which costs about 1 % of the output's size; positions around 4000 must not cost more.
    config = llama_config()
    wide, _ = block_pair(config, torch.float32)
    narrow, _ = block_pair(config, torch.bfloat16)
    hidden = torch.randn(2, 32, 64)
    errors = []
    for first in (0, 4000):
        tables = rotary_tables(torch.arange(first, first + 32)[None], config)
        expected = wide(hidden, tables)[0].detach()
        got = narrow(hidden.bfloat16(), tables)[0].detach().float()
        errors.append(float((got - expected).std() / expected.std()))
    assert errors[0] < 0.02
    assert errors[1] < 1.3 * errors[0]


def test_rotary_angles_are_rounded_as_by_llada() -> None:
    # frequency = 1 / theta^(2i / E), rounded to float32, then times the position, rounded again. Dividing the
    # position instead moves angles near 2000 by up to 1e-4, which bfloat16 queries turn into other logits.
    config = llama_config()
    positions = np.arange(2000, dtype=np.float32)[:, None]
    powers = (500000.0 ** (torch.arange(0, 16, 2, dtype=torch.float32) / 16)).numpy()
    frequencies = np.float32(1.0) / powers
    angles = (positions * frequencies).astype(np.float64)
    tables = rotary_tables(torch.arange(2000)[None], config)
    assert np.abs(tables.cos[0, 0, :, :8].numpy() - np.cos(angles)).max() < 1e-6
    assert np.abs(tables.sin[0, 0, :, 8:].numpy() - np.sin(angles)).max() < 1e-6


def test_attention_is_not_causal() -> None:
    config = llama_config()
    ours, _ = block_pair(config, torch.float64)
    hidden = torch.randn(1, 10, 64, dtype=torch.float64)
    tables = rotary_tables(torch.arange(10)[None], config)
    before = ours(hidden, tables)[0]
    swapped = hidden.clone()
    swapped[:, [8, 9]] = hidden[:, [9, 8]]
    assert (ours(swapped, tables)[0][:, :8] - before[:, :8]).abs().max() > 1e-3


def test_one_prefix_serves_several_rows() -> None:
    config = llama_config(num_kv_heads=2)
    ours, _ = block_pair(config, torch.float64)
    prompt, rows = torch.randn(2, 7, 64, dtype=torch.float64), torch.randn(6, 5, 64, dtype=torch.float64)
    _, prefix = ours(prompt, rotary_tables(torch.arange(7)[None], config))
    tables = rotary_tables(torch.arange(7, 12)[None], config)
    together, _ = ours(rows, tables, prefix)
    for i in range(6):
        alone, _ = ours(rows[i : i + 1], tables, type(prefix)(*(t[i // 3 : i // 3 + 1] for t in prefix)))
        assert (together[i] - alone[0]).abs().max() < 1e-12


def test_norm_is_the_formula_and_can_be_frozen() -> None:
    norm = RMSNorm(16, eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(16))
    hidden = torch.randn(4, 16, requires_grad=True)
    expected = norm.weight * hidden / (hidden.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(norm(hidden), expected, atol=1e-6)
    norm(hidden, frozen=True).sum().backward()
    assert norm.weight.grad is None
    assert hidden.grad is not None


def test_head_counts_must_divide() -> None:
    config = llama_config()
    config.num_key_value_heads = 3
    with pytest.raises(ValueError, match=r"\(4\) must be divisible by num_key_value_heads \(3\)"):
        Block(config)
