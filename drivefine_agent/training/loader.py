"""The examples of each optimizer step, assembled here or in worker processes.

One item is one step's batch, and everything random in it follows from (seed, purpose, step): the order
(`mixing.py`), the choice of questions, the augmentation. So neither the number of workers nor a stop in
between changes what a step sees.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from drivefine_agent.errors import WorkerError
from drivefine_agent.training.config import AugmentationConfig
from drivefine_agent.training.demonstrations import Batch, Demonstrations
from drivefine_agent.training.mixing import Mixture, mixed_batch
from drivefine_agent.training.questions import Questions, TextBatch
from drivefine_agent.training.seeds import generator_for
from drivefine_agent.worker_processes import worker_limit_s

Part = Batch | TextBatch
"""Examples of one step that go through the model together: of one source and one answer length."""


@dataclass(frozen=True)
class StepBatches(Dataset[list[Part]]):
    """By step: the parts of its batch. S sources."""

    sources: Sequence[Demonstrations | Questions]
    ratios: tuple[float, ...]
    """(S,) see `Mixture`."""
    batch_size: int
    """Examples per step, over all sources."""
    seed: int
    purpose: str
    """Of the random numbers, e.g. `generator`."""
    augmentation: AugmentationConfig | None = None

    @property
    def mixture(self) -> Mixture:
        """Sizes and ratios."""
        return Mixture(tuple(len(source) for source in self.sources), self.ratios)

    @property
    def num_epoch_steps(self) -> int:
        """Steps per epoch."""
        return self.mixture.num_epoch_steps(self.batch_size)

    def __getitem__(self, step: int) -> list[Part]:
        """The batch of one step, on the CPU."""
        order = f"{self.purpose} order"
        sources, positions = mixed_batch(self.mixture, self.batch_size, self.seed, order, step)
        light = generator_for(self.seed, f"{self.purpose} augmentation", step)
        parts: list[Part] = []
        for number, source in enumerate(self.sources):
            rows = positions[sources == number]
            if len(rows) == 0:
                continue
            if isinstance(source, Questions):
                parts += source.batches(rows, self.augmentation, light)
            else:
                parts.append(source.batch(rows, self.augmentation, light))
        return parts

    def steps(self, start: int, stop: int, num_workers: int = 0, prefetch: int = 2) -> Iterator[list[Part]]:
        """The batches of steps start ... stop - 1, in order.

        Args:
          start: first step.
          stop: one past the last.
          num_workers: processes that prepare batches ahead; 0: none, each is prepared when it is asked for.
          prefetch: batches that each worker prepares ahead.
        """
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=num_workers,
            prefetch_factor=prefetch if num_workers > 0 else None,
            # Forked workers share the memory-mapped arrays; sent to them, all images would be copied.
            multiprocessing_context="fork" if num_workers > 0 else None,
            collate_fn=_as_it_is,
            timeout=worker_limit_s() if num_workers > 0 else 0,
            generator=torch.Generator(),  # of the workers' seeds, which nothing here uses
        )
        return iter(loader)


# What PyTorch's loader says of its processes.
_WORKERS_LOST = re.compile(r"DataLoader (worker|timed out)")


@contextmanager
def loader_errors() -> Iterator[None]:
    """Around training: names what PyTorch raises, at any place, when a process that prepares batches is lost.

    Raises:
      WorkerError: such a process died, or prepared nothing for `worker_limit_s`.
    """
    others = set(multiprocessing.active_children())
    try:
        yield
    except RuntimeError as error:
        if not _WORKERS_LOST.match(str(error)):
            raise
        raise WorkerError(
            "processes that prepare batches must live and go on, got a lost one in training "
            f"({str(error).splitlines()[0]}); start the same command again to go on from its last "
            "checkpoint, with a smaller data.num_workers if memory is short"
        ) from error
    finally:  # a stopped one ignores the signal that PyTorch sends, and would be waited for
        for process in set(multiprocessing.active_children()) - others:
            process.kill()


def _as_it_is(parts: list[Part]) -> list[Part]:
    return parts
