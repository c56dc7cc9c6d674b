"""Tokenizers with chosen ids, the twin of LaViDa, and files that look like the published checkpoints."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, SiglipVisionConfig

from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.text_tokenizer import TOKENIZER_FILE_NAME, TextTokenizer

TWIN = Path(__file__).parents[1] / "data" / "lavida_twin"
TWIN_TEXT_ROWS = 120
"""Rows of the twin's checkpoint; our model of it has 128."""

LLADA_IDS = {
    "<|startoftext|>": 126080,
    "<|endoftext|>": 126081,
    "<|mdm_mask|>": 126336,
    "<|start_header_id|>": 126346,
    "<|end_header_id|>": 126347,
    "<|eot_id|>": 126348,
}
TWIN_IDS = {
    "<|startoftext|>": 110,
    "<|endoftext|>": 111,
    "<|mdm_mask|>": 112,
    "<|start_header_id|>": 113,
    "<|end_header_id|>": 114,
    "<|eot_id|>": 115,
}


def tool(name: str) -> Callable[[list[str]], None]:
    """`main` of a script of tools/."""
    spec = importlib.util.spec_from_file_location(f"{name}_tool", TWIN.parents[2] / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def byte_ids() -> dict[str, int]:
    """The 256 bytes in the order that GPT-2 and LLaDA have them: printable ones first; newline is 198."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = printable + [256 + i for i in range(len(others))]
    return {chr(character): i for i, character in enumerate(shown)}


def make_tokenizer(special_ids: Mapping[str, int], words: Mapping[str, int]) -> TextTokenizer:
    """A byte-level BPE tokenizer with special tokens and two-letter-wise merged words at given ids."""
    vocabulary = byte_ids() | dict(special_ids) | dict(words)
    merges, free = [], 300
    for word in words:
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = free
                free += 1
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special_ids])
    return TextTokenizer(tokenizer)


def llada_tokenizer() -> TextTokenizer:
    """LLaDA's special tokens, newline and halves of `assistant` at LLaDA's ids; else bytes."""
    return make_tokenizer(LLADA_IDS, {"istant": 10450, "ass": 598})


def save_twin_tokenizer(folder: Path) -> None:
    """A tokenizer that fits the twin's 120 rows: digits, dot, minus and special tokens."""
    characters = {character: i for i, character in enumerate("0123456789.-")}
    tokenizer = Tokenizer(models.BPE(vocab=characters | TWIN_IDS, merges=[]))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in TWIN_IDS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER_FILE_NAME))


def twin_config(**overrides: object) -> DriveFineConfig:
    """Our configuration of the twin in tests/data/lavida_twin."""
    text = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        max_position_embeddings=4096,
        bos_token_id=110,
        eos_token_id=111,
        pad_token_id=111,
    )
    vision = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )
    settings = {
        "n_refine": 2,
        "mask_token_id": 112,
        "spatial_min_m": -16.0,
        "spatial_step_m": 0.5,
        "spatial_bins": 64,
        "heading_min_deg": -80.0,
        "heading_step_deg": 5.0,
        "heading_bins": 32,
        "tile_fit": "letterbox",
        "slot_restricted": False,
    }
    return DriveFineConfig(text_config=text, vision_config=vision, **(settings | overrides))


def write_hollow(file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> int:
    """A safetensors file of the right size that is all hole; returns the bytes it pretends to have."""
    width = {"BF16": 2, "F32": 4}[dtype]
    entries, offset = {}, 0
    for name, shape in shapes.items():
        size = width
        for length in shape:
            size *= length
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(entries).encode()
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + offset)
    return offset
