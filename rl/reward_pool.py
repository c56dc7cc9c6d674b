"""Scoring on worker processes that may die or hang without taking the run with them.

One thread hands out tasks and takes results, so that workers are busy while the model computes. A worker has
one task at a time. If it dies, or does not answer in time, it is killed and replaced, and the trajectories of
its task have no score; they are not tried again, since they may be what killed it.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.scoring.cache import SceneCache
from drivefine_agent.scoring.warm_up import warm_up
from drivefine_agent.worker_processes import end_with_parent
from rl.config import RewardConfig
from rl.rewards import RewardError, RewardScorer, Scored, score_scene, unknown

ScoreFunction = Callable[[SceneCache, str, NDArray[np.float64]], Scored]
READY = "ready"
MAX_ROWS = 128
"""Trajectories per task: a message of this size fits into a pipe, so that sending never waits."""


class _Task(NamedTuple):
    ticket: int
    scene: int
    first_row: int
    token: str
    poses: NDArray[np.float64]


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    deadline: float
    """Of its start or its task; infinite while it has none."""
    is_ready: bool = False
    task: _Task | None = None


@dataclass
class _Ticket:
    scores: list[NDArray[np.float64]]
    reasons: list[list[str]]
    num_open: int
    is_done: threading.Event = field(default_factory=threading.Event)


def run_worker(connection: Connection, cache_folder: Path, score: ScoreFunction) -> None:
    """Body of a worker process: opens the memory-mapped cache, scores until the pipe is closed."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run itself ends its workers
    cache = SceneCache(cache_folder)
    if score is score_scene:  # the compiled scorer is loaded before the first task's time counts
        warm_up()
    connection.send(READY)
    while True:
        try:
            token, poses = connection.recv()
        except EOFError:
            return
        connection.send(score(cache, token, poses))


class PoolScorer(RewardScorer):
    """A pool of spawned processes."""

    def __init__(self, config: RewardConfig, cache_folder: Path, score: ScoreFunction = score_scene) -> None:
        """Starts the workers.

        Args:
          config: number of workers and time-outs.
          cache_folder: of the scene cache; each worker opens it for itself.
          score: what a worker does; importable by name.

        Raises:
          DataError: the folder is no scene cache.
        """
        super().__init__(config.weights)
        SceneCache(cache_folder)  # says what is wrong here, not in every worker
        self._config = config
        self._arguments = (cache_folder, score)
        self._spawn = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()
        self._tasks: deque[_Task] = deque()
        self._tickets: dict[int, _Ticket] = {}
        self._failures_in_a_row = 0
        self._last_failure = ""
        self._error: RewardError | None = None
        self._is_closing = False
        self._wake, self._woken = multiprocessing.Pipe()
        self._workers = [self._started() for _ in range(config.num_workers)]
        self._thread = threading.Thread(target=self._supervise, name="reward pool", daemon=True)
        self._thread.start()

    @property
    def process_ids(self) -> list[int]:
        """Of the present workers."""
        return [worker.process.pid or 0 for worker in list(self._workers)]

    def close(self) -> None:
        """Ends the workers, busy or not."""
        if not self._is_closing:
            self._is_closing = True
            self._wake.send(None)
            self._thread.join()
            for worker in self._workers:
                _end(worker)

    def _submit(self, ticket: int, tokens: Sequence[str], poses: NDArray[np.float64]) -> None:
        tasks = [
            _Task(ticket, scene, first, token, poses[scene, first : first + MAX_ROWS])
            for scene, token in enumerate(tokens)
            for first in range(0, poses.shape[1], MAX_ROWS)
        ]
        with self._lock:
            self._tickets[ticket] = _Ticket(
                [unknown(poses.shape[1]) for _ in tokens], [[] for _ in tokens], len(tasks)
            )
            if not tasks:
                self._tickets[ticket].is_done.set()
            self._tasks.extend(tasks)
        self._wake.send(None)

    def _collect(self, ticket: int) -> list[Scored]:
        record = self._tickets[ticket]
        while not record.is_done.wait(timeout=1.0):
            if not self._thread.is_alive() and self._error is None:
                raise RewardError(
                    "the thread that hands out scoring tasks must live, got one that has ended; this is a "
                    "bug: open an issue, and use reward.num_workers=0 meanwhile"
                )
            if self._error is not None:
                raise self._error
        if self._error is not None:
            raise self._error
        with self._lock:
            del self._tickets[ticket]
        return list(zip(record.scores, record.reasons, strict=True))

    # ---------------------------------------------------------------------------------- supervising thread

    def _supervise(self) -> None:
        while not self._is_closing and self._error is None:
            self._hand_out()
            due = min(worker.deadline for worker in self._workers)
            timeout = None if due == float("inf") else max(0.0, due - time.monotonic())
            heard = wait([self._woken, *(worker.connection for worker in self._workers)], timeout)
            if self._woken in heard:
                self._woken.recv()
            for index, worker in enumerate(self._workers):
                if worker.connection in heard:
                    self._hear(index)
                elif time.monotonic() >= worker.deadline:
                    what = "score a scene" if worker.is_ready else "start"
                    self._replace(index, f"did not {what} in time and was killed")
        if self._error is not None:
            with self._lock:
                for record in self._tickets.values():
                    record.is_done.set()

    def _hand_out(self) -> None:
        for index, worker in enumerate(self._workers):
            if worker.is_ready and worker.task is None:
                with self._lock:
                    if not self._tasks:
                        return
                    task = self._tasks.popleft()
                worker.task = task
                worker.deadline = time.monotonic() + self._config.timeout_s
                try:
                    worker.connection.send((task.token, task.poses))
                except OSError:
                    self._replace(index, "died")

    def _hear(self, index: int) -> None:
        """Takes what a worker sent: that it is ready, or a result; or finds that it is dead."""
        worker = self._workers[index]
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(timeout=1.0)
            self._replace(index, f"died with exit code {worker.process.exitcode}")
            return
        worker.deadline = float("inf")
        if message == READY:
            worker.is_ready = True
            return
        assert worker.task is not None
        task, worker.task = worker.task, None
        self._failures_in_a_row = 0
        self._store(task, message)

    def _store(self, task: _Task, scored: Scored) -> None:
        scores, reasons = scored
        with self._lock:
            record = self._tickets[task.ticket]
            record.scores[task.scene][task.first_row : task.first_row + len(task.poses)] = scores
            record.reasons[task.scene] += reasons
            record.num_open -= 1
            if record.num_open == 0:
                record.is_done.set()

    def _replace(self, index: int, what: str) -> None:
        """Kills a worker, masks its task, starts another; gives up after too many in a row."""
        worker = self._workers[index]
        _end(worker)
        self.num_lost_workers += 1
        self._failures_in_a_row += 1
        at = "" if worker.task is None else f" at scene {worker.task.token!r}"
        self._last_failure = f"a scoring process {what}{at}"
        if worker.task is not None:
            self._store(worker.task, (unknown(len(worker.task.poses)), [self._last_failure]))
        if self._failures_in_a_row >= self._config.max_failures_in_a_row:
            self._error = RewardError(
                f"{self._failures_in_a_row} scoring processes in a row failed, the last: "
                f"{self._last_failure}. Its own output says why; try reward.num_workers=0, or raise "
                "reward.timeout_s if the scenes are large"
            )
        else:
            self._workers[index] = self._started()

    def _started(self) -> _Worker:
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(target=run_worker, args=(theirs, *self._arguments), daemon=True)
        process.start()
        theirs.close()  # so that the pipe ends when the worker does
        return _Worker(process, ours, time.monotonic() + self._config.start_timeout_s)


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.connection.close()
