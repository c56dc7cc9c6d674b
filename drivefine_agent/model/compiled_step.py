"""The answer step with static shapes, compiled: on a GPU its kernels become one CUDA graph.

A step of the 8B model is hundreds of small kernels over 24 tokens, whose launches take longer than their
work. What is compiled is `answer_logits`: all slots, not only the open ones, so that every step of an answer
has the same shapes. Prompt and vision are compute-bound and stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from drivefine_agent.answer import AnswerLogits, OpenSlotLogits
from drivefine_agent.model.backbone.block import KeysValues
from drivefine_agent.model.backbone.cache import PromptCache
from drivefine_agent.model.drivefine_model import DriveFineModel

_logger = logging.getLogger(__name__)

_Shape = tuple[object, ...]


class CompiledStep:
    """Stands for the model's own answer step in decoding; one compilation per shape of prompt and rows.

    Prompts of each shape live in buffers that are overwritten, since a CUDA graph reads fixed addresses: ask
    for all steps of one prompt before those of the next. Where compilation fails (no compiler, an unsupported
    device) it says so once and computes eagerly from then on.
    """

    def __init__(self, model: DriveFineModel, backend: str | Callable[..., object] = "inductor") -> None:
        """Compiles nothing yet.

        Args:
          model: on its device, with its final weights and attention kernel.
          backend: of `torch.compile`.
        """
        self.model = model
        self.is_compiled = True
        """Whether compilation has worked so far."""
        self._buffers: dict[_Shape, PromptCache] = {}
        self._loaded: dict[_Shape, PromptCache] = {}
        use_graphs = model.device.type == "cuda" and backend == "inductor"
        self._compiled = torch.compile(
            model.answer_logits,
            backend=backend,
            mode="reduce-overhead" if use_graphs else None,
            fullgraph=True,
            dynamic=False,
        )

    def __call__(self, prompt: PromptCache, actions: Tensor) -> AnswerLogits | OpenSlotLogits:
        """Logits of answer rows (B, R, L), of all slots if compiled; valid until the next call."""
        if not self.is_compiled:
            return self._eager(prompt, actions)
        torch.compiler.cudagraph_mark_step_begin()
        try:
            return self._compiled(self._in_buffers(prompt), actions)
        except (TorchDynamoException, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.is_compiled = False
            _logger.warning(
                "compile=true does not work here and is ignored, decoding is eager: %s: %s",
                type(error).__name__,
                " ".join(str(error).split())[:300],
            )
            return self._eager(prompt, actions)

    def _eager(self, prompt: PromptCache, actions: Tensor) -> AnswerLogits | OpenSlotLogits:
        if prompt.expert == "refinement":
            return self.model.answer_logits(prompt, actions)
        return self.model.open_slot_logits(prompt, actions)

    def _in_buffers(self, prompt: PromptCache) -> PromptCache:
        """The prompt copied into the buffers of its shape, unless it is there already."""
        key_mask = prompt.key_mask
        shape = (prompt.expert, prompt.blocks[0].keys.shape, None if key_mask is None else key_mask.shape)
        if self._loaded.get(shape) is prompt:
            return self._buffers[shape]
        if shape not in self._buffers:
            self._buffers[shape] = _empty_like(prompt)
        buffers = self._buffers[shape]
        for target, source in zip(_tensors(buffers), _tensors(prompt), strict=True):
            target.copy_(source)
        self._loaded[shape] = prompt
        return buffers


def _tensors(prompt: PromptCache) -> list[Tensor]:
    tensors = [tensor for keys_values in prompt.blocks for tensor in keys_values]
    return [*tensors, prompt.next_positions, *([] if prompt.key_mask is None else [prompt.key_mask])]


def _empty_like(prompt: PromptCache) -> PromptCache:
    """Buffers for prompts of this shape, at addresses that stay."""
    buffers = PromptCache(
        prompt.expert,
        tuple(KeysValues(torch.empty_like(k), torch.empty_like(v)) for k, v in prompt.blocks),
        None if prompt.key_mask is None else torch.empty_like(prompt.key_mask),
        torch.empty_like(prompt.next_positions),
    )
    for tensor in _tensors(buffers):
        torch._dynamo.mark_static_address(tensor)
    return buffers
