"""The processes of a run: who is who, and how they exchange a few numbers. Only the engine uses this.

A process that dies or hangs makes the others stop with `ProcessLostError`, at once or after the time-out of
the configuration; nothing waits for ever.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from drivefine_agent.errors import DriveFineError

_SETTLING_S = 0.3
_SIGNS_OF_A_LOST_PROCESS = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "timed out",
    "timeout",
    "gloo",
    "nccl",
    "socket",
)


class ProcessLostError(DriveFineError, RuntimeError):
    """Another process of the run died, gave up or does not answer; start the run again to resume it."""


class Processes:
    """One process, or the group that torchrun started."""

    def __init__(self, rank: int, world_size: int, local_rank: int, timeout_s: float) -> None:
        """Use `alone` or `joined`."""
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self._timeout_s = timeout_s

    @classmethod
    def alone(cls, timeout_s: float) -> Processes:
        """A run of one process.

        Raises:
          ValueError: torchrun started several.
        """
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1:
            raise ValueError(
                f"engine.backend=single is a run of one process, but torchrun started {started}, which "
                "would all do the same: set engine.backend to ddp, fsdp2, zero1, zero2 or zero3, or start "
                "the script with plain python"
            )
        return cls(0, 1, 0, timeout_s)

    @classmethod
    def joined(cls, backend: str, device_type: str, timeout_s: float) -> Processes:
        """Joins the group of processes that torchrun started.

        Args:
          backend: of the engine, for messages.
          device_type: cpu or cuda.
          timeout_s: after which a process that does not answer is given up.

        Raises:
          ValueError: torchrun did not start this process.
        """
        missing = [
            name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
        ]
        if missing:
            raise ValueError(
                f"engine.backend={backend} needs processes started by torchrun ({missing} not set): "
                f"torchrun --nproc_per_node 2 rl/train_hybrid.py engine.backend={backend} ..., "
                "or set engine.backend=single"
            )
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if device_type == "cuda":
            torch.cuda.set_device(local_rank)
        with lost_processes_named(timeout_s):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
                timeout=datetime.timedelta(seconds=timeout_s),
            )
        return cls(dist.get_rank(), dist.get_world_size(), local_rank, timeout_s)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around everything that may wait for other processes."""
        if self.world_size == 1:
            yield
            return
        with lost_processes_named(self._timeout_s):
            yield

    def total(self, values: list[float]) -> list[float]:
        """Sums over the processes; every process gives equally many."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        with self.watched():
            dist.all_reduce(tensor)
        return tensor.tolist()

    def gathered(self, value: Any) -> list[Any]:
        """A JSON value of every process, in order of their ranks, on all of them."""
        if self.world_size == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        with self.watched():
            dist.all_gather(sizes, torch.tensor([len(own)]))
            longest = max(int(size) for size in sizes)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(own)] = own
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world_size)]
            dist.all_gather(texts, padded)
        return [
            json.loads(bytes(text[: int(size)].tolist())) for text, size in zip(texts, sizes, strict=True)
        ]

    def leave(self) -> None:
        """Ends the group; where somebody still owns one, lets gloo's threads drop their last tensors.

        Dropping one takes the interpreter's lock, and a thread that comes for it while the interpreter ends
        aborts the process ("terminate called without an active exception").
        """
        if dist.is_initialized():
            dist.destroy_process_group()
            gc.collect()
            time.sleep(_SETTLING_S)


@contextmanager
def lost_processes_named(timeout_s: float) -> Iterator[None]:
    """Turns the many errors of a broken connection into one that says what happened."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if isinstance(error, ProcessLostError | torch.OutOfMemoryError) or not any(
            sign in text for sign in _SIGNS_OF_A_LOST_PROCESS
        ):
            raise
        raise ProcessLostError(
            f"another process of this run died, or did not answer within engine.timeout_s = {timeout_s:g} s "
            f"({str(error).splitlines()[0]}). Its own output says why; start the same command again to go on "
            "from the last checkpoint"
        ) from error


def mean_over(
    processes: Processes, scalars: Mapping[str, float], weights: Mapping[str, float] | None
) -> dict[str, float]:
    """Weighted mean of each scalar over the processes; see `Engine.mean`."""
    names = sorted(scalars)
    given = processes.gathered(names)
    if any(other != names for other in given):
        raise ValueError(f"every process must give the same scalars to average, got {given}")
    used = [1.0 if weights is None else float(weights.get(name, 1.0)) for name in names]
    weighted = [w * float(scalars[name]) if w != 0 else 0.0 for name, w in zip(names, used, strict=True)]
    totals = processes.total([*weighted, *used])
    return {
        name: totals[i] / totals[len(names) + i] if totals[len(names) + i] != 0 else float("nan")
        for i, name in enumerate(names)
    }
