"""Runs a command and watches its process tree: memory, open files, number of processes, over time."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_INTERVAL_S = 0.25


@dataclass(frozen=True)
class Sample:
    """The tree at one moment. Memory is what is resident and not a mapped file [MiB]."""

    seconds: float
    main_mib: float
    worker_mib: float
    """Of the largest other process."""
    num_processes: int
    """With the main process."""
    num_open_files: int
    """Of the process with the most."""


@dataclass(frozen=True)
class Watched:
    """How a command went."""

    seconds: float
    exit_code: int
    samples: tuple[Sample, ...]

    def peaks(self, name: str) -> list[float]:
        """Ten peaks of a field of `Sample`, one for each tenth of the time."""
        tenths: list[list[float]] = [[] for _ in range(10)]
        for sample in self.samples:
            tenths[min(9, int(10 * sample.seconds / self.seconds))].append(getattr(sample, name))
        return [max(values, default=0.0) for values in tenths]

    def summary(self) -> dict[str, Any]:
        """What is kept in a file: peaks over all, and of memory by tenths of the time."""
        peaks = {name: max(self.peaks(name)) for name in asdict(self.samples[0]) if name != "seconds"}
        tenths = {name: [round(v, 1) for v in self.peaks(name)] for name in ("main_mib", "worker_mib")}
        return {"seconds": round(self.seconds, 2), "exit_code": self.exit_code, **peaks, "tenths": tenths}


def watch(
    command: Sequence[str],
    log: Path,
    *,
    max_open_files: int,
    environment: dict[str, str] | None = None,
    on_sample: Callable[[Sample], None] = lambda sample: None,
) -> Watched:
    """Run a command to its end, with few files to open; its output goes to a file.

    Args:
      command: program and arguments.
      log: takes standard output and error.
      max_open_files: RLIMIT_NOFILE of the command and its workers.
      environment: in place of this process's own.
      on_sample: called a few times a second.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max_open_files, max_open_files))

    started = time.perf_counter()
    samples = [Sample(0.0, 0.0, 0.0, 1, 0)]
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, preexec_fn=limit
        ) as process,
    ):
        while process.poll() is None:
            sample = _sample(process.pid, time.perf_counter() - started)
            if sample is not None:
                samples.append(sample)
                on_sample(sample)
            time.sleep(_INTERVAL_S)
    return Watched(time.perf_counter() - started, process.returncode, tuple(samples))


def _sample(root: int, seconds: float) -> Sample | None:
    """None if the main process has just ended."""
    memory: dict[int, float] = {}
    num_files = 0
    for pid in _tree(root):
        try:
            memory[pid] = _resident_mib(pid)
            num_files = max(num_files, len(os.listdir(f"/proc/{pid}/fd")))
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    if root not in memory:
        return None
    others = [value for pid, value in memory.items() if pid != root]
    return Sample(seconds, memory[root], max(others, default=0.0), len(memory), num_files)


def _tree(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path(f"/proc/{entry}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            state, parent = text.rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry))
    found, queue = [], [root]
    while queue:
        found.append(queue.pop())
        queue += children.get(found[-1], [])
    return found


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0  # it is ending
