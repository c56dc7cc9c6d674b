"""Work in several processes: a worker that dies or hangs is an error, and none outlives its parent."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_connections
from multiprocessing.reduction import ForkingPickler
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar, cast

from drivefine_agent.errors import WorkerError

LIMIT_VARIABLE = "DRIVEFINE_WORKER_LIMIT_S"
_DEFAULT_LIMIT_S = 1800.0
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

    Processes are spawned, so that no thread or lock of this one is inherited. Each has one task at a time:
    memory does not grow with their number. If the caller stops early, or an error ends it, workers are
    killed; what they write must therefore be written atomically.

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
    source = iter(tasks)
    events: SimpleQueue[tuple[_Worker[Task, Result], _Outcome[Result]]] = SimpleQueue()
    start = (function, initializer, tuple(initargs))
    crew: list[_Worker[Task, Result]] = []
    at: dict[_Worker[Task, Result], Task] = {}
    is_done = False

    def hand_out(worker: _Worker[Task, Result], task: Task) -> None:
        at[worker] = task
        worker.hand_out(task)

    try:
        last_progress, last_tick = time.monotonic(), on_tick()
        for task in islice(source, num_workers):
            crew.append(_Worker(start, events))
            hand_out(crew[-1], task)
        while at:
            try:
                worker, outcome = events.get(timeout=_TICK_S)
            except Empty:
                worker, outcome = None, None
            tick = on_tick()
            if outcome is not None or tick != last_tick:
                last_progress, last_tick = time.monotonic(), tick
            elif time.monotonic() - last_progress > limit_s:
                raise WorkerError(
                    f"worker processes must finish something every {limit_s:.0f} s ({LIMIT_VARIABLE}), got "
                    f"nothing from {_names(at.values(), describe)}: they hang or are stopped, or the "
                    f"machine is overloaded; {advice}"
                )
            if worker is None or outcome is None:
                continue
            task = at.pop(worker)
            if outcome.is_lost:
                raise WorkerError(
                    "worker processes must live until their work is done, got one that died (killed, or out "
                    f"of memory) while at {describe(task)}; {advice}, with fewer workers if memory is short"
                )
            if outcome.error is not None:
                raise outcome.error
            for following in islice(source, 1):
                hand_out(worker, following)
            yield task, cast(Result, outcome.result)
            last_progress = time.monotonic()  # the caller may have taken its time
        is_done = True
    finally:
        _end(crew, _END_LIMIT_S if is_done else 0.0)


class _Outcome(NamedTuple, Generic[Result]):
    """What came of a task."""

    result: Result | None = None
    error: BaseException | None = None
    is_lost: bool = False
    """The process has ended before it said anything."""


class _Worker(Generic[Task, Result]):
    """A process, and the thread of this one that hands it a task at a time and waits for the outcome.

    The thread may wait without end, for a process that has stopped while it reads or writes; it ends when
    the process is killed, since only that has the other end of the pipe.
    """

    def __init__(self, start: tuple[Any, ...], events: SimpleQueue[Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._tasks: SimpleQueue[tuple[Task] | None] = SimpleQueue()
        self.process = context.Process(target=_work, args=(theirs, *start), daemon=True)
        self.process.start()
        theirs.close()
        threading.Thread(target=self._serve, args=(events,), name="worker", daemon=True).start()

    def hand_out(self, task: Task) -> None:
        self._tasks.put((task,))

    def no_more(self) -> None:
        self._tasks.put(None)

    def _serve(self, events: SimpleQueue[Any]) -> None:
        with self._pipe:
            while (item := self._tasks.get()) is not None:
                try:
                    self._pipe.send(item[0])
                    outcome = self._pipe.recv()
                except (EOFError, OSError):
                    outcome = _Outcome(is_lost=True)
                except Exception as error:  # the task cannot be pickled, or the result not be made again
                    outcome = _Outcome(error=error)
                events.put((self, outcome))


def _end(crew: Sequence[_Worker[Any, Any]], limit_s: float) -> None:
    """Lets workers that have nothing to do end by themselves; after `limit_s` they are killed."""
    for worker in crew:
        worker.no_more()
    end = time.monotonic() + limit_s
    for worker in crew:
        worker.process.join(max(0.0, end - time.monotonic()))
        worker.process.kill()
    for worker in crew:
        worker.process.join()


def _work(
    pipe: Connection, function: Callable[[Any], Any], initializer: Callable[..., object] | None, initargs: Any
) -> None:
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    end_with_parent()
    is_ready = initializer is None
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            if initializer is not None and not is_ready:
                initializer(*initargs)
                is_ready = True
            outcome = _Outcome(result=function(task))
        except Exception as error:
            error.add_note(f"in a worker process:\n{traceback.format_exc()}")
            outcome = _Outcome(error=error)
        _send(pipe, outcome)


def _send(pipe: Connection, outcome: _Outcome[Any]) -> None:
    try:
        copy.copy(outcome.error)  # many an exception can be pickled, but not made again
        content = ForkingPickler.dumps(outcome)
    except Exception as error:
        told = outcome.error or error
        text = f"a worker process must return what can be pickled, got {type(told).__name__}: {told}"
        content = ForkingPickler.dumps(_Outcome(error=RuntimeError(f"{text}; this is a bug, open an issue")))
    pipe.send_bytes(content)


def _names(tasks: Iterable[Any], describe: Callable[[Any], str]) -> str:
    names = [describe(task) for task in islice(tasks, 9)]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def end_with_parent() -> None:
    """Make this worker process end at once if its parent is killed; else it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is not a worker process"
    sentinel = parent.sentinel

    def watch() -> None:
        wait_for_connections([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
