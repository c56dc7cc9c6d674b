"""Work in several processes: a worker that dies or hangs is an error, and none outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import wait as wait_for_connections
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from drivefine_agent.errors import WorkerError

LIMIT_VARIABLE = "DRIVEFINE_WORKER_LIMIT_S"
_DEFAULT_LIMIT_S = 1800.0
_TASKS_IN_FLIGHT = 2  # per worker: one in work, one waiting
_TICK_S = 0.2
_END_LIMIT_S = 10.0  # for a worker that has nothing left to do

Task = TypeVar("Task")
Result = TypeVar("Result")


def worker_limit_s() -> float:
    """Seconds without any progress after which workers count as stalled; DRIVEFINE_WORKER_LIMIT_S sets it.

    Raises:
      WorkerError: the variable is no positive number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        limit_s = float(text) if text else _DEFAULT_LIMIT_S
    except ValueError:
        limit_s = float("nan")
    if not limit_s > 0:
        raise WorkerError(
            f"{LIMIT_VARIABLE} must be a number of seconds above 0, got {text!r} in the environment; "
            f"set it to such a number, or unset it for {_DEFAULT_LIMIT_S:.0f}"
        )
    return limit_s


def as_they_finish(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    num_workers: int,
    *,
    initializer: Callable[..., object] | None = None,
    initargs: Sequence[Any] = (),
    describe: Callable[[Task], str] = str,
    advice: str = "start the same command again",
    on_tick: Callable[[], object] = lambda: None,
) -> Iterator[tuple[Task, Result]]:
    """Tasks with their results, in the order in which they are finished.

    Processes are spawned, so that no thread or lock of this one is inherited. Only a few tasks per worker are
    handed in at a time: memory does not grow with their number. If the caller stops early, or an error ends
    it, workers are killed; what they write must therefore be written atomically.

    Args:
      function: what a worker does with a task; can be pickled.
      tasks: taken one by one.
      num_workers: processes, at least 1.
      initializer: called in each worker as it starts.
      initargs: its arguments.
      describe: names a task in errors.
      advice: what to do after an error, its end.
      on_tick: called several times a second while this waits. A value that is not the last one returned
        means that there was progress.

    Raises:
      WorkerError: a worker died (killed, or out of memory), or nothing was finished for `worker_limit_s`.
      Exception: whatever `function` raises.
    """
    limit_s = worker_limit_s()
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (initializer, tuple(initargs)))
    source = iter(tasks)
    pending: dict[Future[Result], Task] = {}
    handed_in: list[Task] = []  # while the pool takes it, which it refuses where a worker died
    is_done = False

    def fill() -> None:
        for task in islice(source, _TASKS_IN_FLIGHT * num_workers - len(pending)):
            handed_in.append(task)
            pending[pool.submit(function, task)] = handed_in.pop()

    try:
        last_progress, last_tick = time.monotonic(), on_tick()
        fill()
        while pending:
            finished, _ = wait(pending, timeout=_TICK_S, return_when=FIRST_COMPLETED)
            tick = on_tick()
            if finished or tick != last_tick:
                last_progress, last_tick = time.monotonic(), tick
            elif time.monotonic() - last_progress > limit_s:
                raise WorkerError(
                    f"worker processes must finish something every {limit_s:.0f} s ({LIMIT_VARIABLE}), got "
                    f"nothing from {_names(pending.values(), describe)}: they hang or are stopped, or the "
                    f"machine is overloaded; {advice}"
                )
            for future in finished:
                yield pending[future], future.result()
                del pending[future]
            fill()
            if finished:
                last_progress = time.monotonic()  # the caller may have taken its time
        is_done = True
    except BrokenProcessPool as error:
        lost = _names([*pending.values(), *handed_in], describe)
        raise WorkerError(
            "worker processes must live until their work is done, got one that died (killed, or out of "
            f"memory) while at {lost}; {advice}, with fewer workers if memory "
            "is short"
        ) from error
    finally:
        with killed_after(_END_LIMIT_S if is_done else 0.0, others):
            pool.shutdown(cancel_futures=True)


@contextmanager
def killed_after(limit_s: float, others: Collection[BaseProcess]) -> Iterator[None]:
    """Waiting for child processes to end; after `limit_s` those that still live are killed, but for `others`.

    A stopped one would be waited for without end.
    """

    def kill() -> None:
        for process in set(multiprocessing.active_children()).difference(others):
            process.kill()

    timer = threading.Timer(limit_s, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _names(tasks: Iterable[Any], describe: Callable[[Any], str]) -> str:
    names = [describe(task) for task in islice(tasks, 9)]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _start_worker(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    end_with_parent()
    if initializer is not None:
        initializer(*initargs)


def end_with_parent() -> None:
    """Make this worker process end at once if its parent is killed; else it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is not a worker process"
    sentinel = parent.sentinel

    def watch() -> None:
        wait_for_connections([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
