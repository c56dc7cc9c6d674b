"""Torch's settings of a training process."""

from __future__ import annotations

import os

import torch


def set_up_torch(num_threads: int | None, is_deterministic: bool) -> None:
    """Sets threads and the choice of kernels; to be called before anything is computed on a GPU.

    Args:
      num_threads: on the CPU; None: all cores.
      is_deterministic: only kernels that give the same bits each time. Torch raises RuntimeError where an
        operation has none. Without, atomic additions on a GPU make two runs differ (docs/determinism.md).
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if is_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it
    torch.use_deterministic_algorithms(is_deterministic)
