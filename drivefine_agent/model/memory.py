"""How much memory a computation takes for its tensors, counted on any device, exactly and repeatably."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside a `with` block, backward passes included.

    Not counted: what existed before, and what kernels allocate and free inside. Calls are several times
    slower meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes of the tensors alive."""
        self.peak = 0
        """The most there ever were."""
        self.largest = 0
        """Bytes of the largest tensor made."""
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in tree_iter((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._known.add(tensor.untyped_storage())
        result = func(*args, **kwargs)
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        num_bytes = storage.nbytes()
        self.now += num_bytes
        self.peak = max(self.peak, self.now)
        self.largest = max(self.largest, num_bytes)
        weakref.finalize(storage, self._free, num_bytes)

    def _free(self, num_bytes: int) -> None:
        self.now -= num_bytes
