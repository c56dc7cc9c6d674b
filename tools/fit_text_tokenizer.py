"""Fits the small text tokenizer to prompt texts and writes it into the package.

    python tools/fit_text_tokenizer.py [--output drivefine_agent/model/tiny_tokenizer.json]

Run once when the prompts' wording changes; deterministic. Checkpoints carry their own copy.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np

from drivefine_agent.data.driving_text import COMMAND_TEXT
from drivefine_agent.data.types import Observation
from drivefine_agent.model.choices import PromptWording
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.text_tokenizer import TINY_TOKENIZER_FILE, TextTokenizer, train_text_tokenizer
from drivefine_agent.prompt import INSTRUCTIONS, PromptBuilder


def prompt_texts(num_random: int = 200, seed: int = 0) -> Iterator[str]:
    """Contexts with random numbers in every format, and the instructions."""
    rng = np.random.default_rng(seed)
    placeholder_tokenizer = train_text_tokenizer([""], vocab_size=0)
    for wording in ("full", "short"):
        config = DriveFineConfig.tiny(prompt_wording=cast(PromptWording, wording), prompt_type="vel_and_acc")
        builder = PromptBuilder(config, placeholder_tokenizer)
        for _ in range(num_random):
            yield builder.context_text(
                Observation(
                    image=np.zeros((1, 1, 3), dtype=np.uint8),
                    history_poses=rng.normal(size=(4, 3)) * (6.0, 1.0, 0.1),
                    velocity=rng.normal(size=2) * 5.0,
                    acceleration=rng.normal(size=2),
                    driving_command=np.eye(4, dtype=np.int64)[rng.integers(4)],
                )
            )
    for text in (*INSTRUCTIONS["full"].values(), *INSTRUCTIONS["short"].values()):
        yield from [text] * num_random


def main() -> None:
    """Parses the command line and writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=TINY_TOKENIZER_FILE)
    parser.add_argument("--vocab-size", type=int, default=DriveFineConfig.tiny().base_vocab_size)
    arguments = parser.parse_args()
    tokenizer: TextTokenizer = train_text_tokenizer(
        prompt_texts(), arguments.vocab_size, whole_tokens=COMMAND_TEXT.values()
    )
    tokenizer.save(arguments.output)
    print(f"{len(tokenizer)} tokens -> {arguments.output}")


if __name__ == "__main__":
    main()
