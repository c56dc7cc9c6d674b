"""Names and numbers of a model's configuration that others need before there is a model.

They are apart from `model/config.py` so that the agent, its prompts and every `--help` start without
transformers, which takes seconds to import.
"""

from __future__ import annotations

from typing import Literal, get_args

Expert = Literal["generation", "refinement"]
EXPERTS: tuple[str, ...] = get_args(Expert)

PromptType = Literal["base", "vel_and_acc"]
PoseFormat = Literal["text", "action_tokens"]
PromptWording = Literal["full", "short"]
ActionRows = Literal["free", "ordinal"]
DecoderName = Literal["masked", "autoregressive", "diffusion_head"]
DECODERS: tuple[str, ...] = get_args(DecoderName)

IMAGE_PLACEHOLDER = -200
"""In context ids: the image's tokens go here. Not a row of any table. The value is LLaVA's."""
