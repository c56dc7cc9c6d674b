"""Part of `tools/bench.py`: one answer of the model, with the prompt computed once or in every step."""

from __future__ import annotations

import torch
from bench_common import median_seconds

from drivefine_agent.diffusion.decoding import DecodingOptions, decode
from drivefine_agent.model.choices import IMAGE_PLACEHOLDER
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel

LONG_PROMPT = 1800  # tokens, the 8B model's prompt


def decoding_report() -> list[str]:
    """One line per model."""
    return [
        bench_decoding("tiny", DriveFineConfig.tiny(), 20),
        bench_decoding("tiny, the 8B's prompt", long_prompt_config(), LONG_PROMPT),
    ]


def long_prompt_config() -> DriveFineConfig:
    """The tiny model with room for a prompt as long as the 8B model's."""
    config = DriveFineConfig.tiny()
    config.text_config.max_position_embeddings = 4096
    return config


def bench_decoding(name: str, config: DriveFineConfig, num_text_tokens: int, num_steps: int = 12) -> str:
    """The same answer with the prompt computed once, and with everything computed anew in every step."""
    torch.manual_seed(0)
    model = DriveFineModel(config).eval()
    spec = config.tiles
    tiles = torch.randint(0, 256, (1, spec.num_tiles, spec.size_px, spec.size_px, 3), dtype=torch.uint8)
    text = torch.randint(3, config.base_vocab_size, (1, num_text_tokens))
    context = torch.cat([torch.tensor([[IMAGE_PLACEHOLDER]]), text], dim=1)
    instruction = torch.randint(3, config.base_vocab_size, (4,))
    options = DecodingOptions(num_steps=num_steps, refine=False)

    def cached() -> torch.Tensor:
        prompt = model.prefill(tiles, context, instruction)
        return decode(lambda actions: model.answer_logits(prompt, actions), 1, options).actions

    def uncached() -> torch.Tensor:
        return decode(
            lambda actions: model.one_pass_logits(tiles, context, instruction, actions), 1, options
        ).actions

    with torch.inference_mode():
        is_equal = torch.equal(cached(), uncached())
        slow, fast = median_seconds(uncached, 3), median_seconds(cached, 3)
    prompt_length = config.num_visual_tokens + num_text_tokens + len(instruction)
    return (
        f"  {name:22} prompt {prompt_length:5d}, {num_steps} steps: {1e3 * slow:8.1f} ms uncached, "
        f"{1e3 * fast:7.1f} ms cached, {slow / fast:4.1f} x; tokens {'equal' if is_equal else 'DIFFER'}"
    )
