"""Workers that die, hang, fail or lose their parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from drivefine_agent import worker_processes
from drivefine_agent.errors import WorkerError
from drivefine_agent.scoring import cache_build
from drivefine_agent.worker_processes import LIMIT_VARIABLE, as_they_finish, worker_limit_s

ENDING = "DRIVEFINE_TEST_ENDING"


def square(number: int) -> int:
    return number * number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def stop_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    return number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def die_while_sending(number: int) -> bytes:
    """Half of the result is in the pipe when the process is killed, or stopped."""
    if number == 3:
        send, end = Connection._send, signal.SIGKILL if os.environ[ENDING] == "kill" else signal.SIGSTOP

        def send_half(self: Connection, content: bytes) -> None:
            if len(content) > 1000:
                send(self, content[: len(content) // 2])
                os.kill(os.getpid(), end)
            else:
                send(self, content)

        Connection._send = send_half
    return 100_000 * b"x"


def slow(number: int) -> int:
    time.sleep(0.4)
    return number


class Unusual(Exception):
    """Can be pickled, but not made again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_unusually(number: int) -> int:
    raise Unusual(number, number)


def return_a_lock(number: int) -> object:
    return threading.Lock()


def run_all(function: Callable[[int], Any]) -> list[tuple[int, Any]]:
    return list(as_they_finish(function, range(8), 2, describe=lambda n: f"number {n}", advice="wait"))


def test_every_task_comes_back_with_its_result() -> None:
    assert sorted(run_all(square)) == [(n, n * n) for n in range(8)]
    assert not multiprocessing.active_children()


def test_a_worker_that_is_stopped_after_its_last_task_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_processes, "_END_LIMIT_S", 1.0)
    others = set(multiprocessing.active_children())
    results = []
    for _, result in as_they_finish(square, range(4), 2):
        results.append(result)
        if len(results) == 4:
            workers = set(multiprocessing.active_children()) - others
            for worker in workers:
                os.kill(worker.pid or 0, signal.SIGSTOP)
            started = time.monotonic()
    assert sorted(results) == [0, 1, 4, 9]
    assert len(workers) == 2
    assert time.monotonic() - started < 5.0
    assert not multiprocessing.active_children()


def test_few_tasks_are_taken_ahead() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(40):
            taken.append(number)
            yield number

    finished = 0
    for _ in as_they_finish(square, numbers(), 2):
        assert len(taken) - finished <= 4
        finished += 1
    assert finished == 40


def test_a_worker_that_dies_is_told_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"got one that died .* number 3.*; wait, with fewer workers"):
        run_all(die_at_three)
    assert time.monotonic() - started < 20.0
    assert not multiprocessing.active_children()


def test_a_worker_that_hangs_is_told_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "6")
    with pytest.raises(WorkerError, match=r"every 6 s .* got nothing from .*number 3.*; wait"):
        run_all(stop_at_three)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("ending", ["kill", "stop"])
def test_a_worker_that_ends_while_it_sends_is_told(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDING, ending)
    monkeypatch.setenv(LIMIT_VARIABLE, "5" if ending == "stop" else "60")
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"got (one that died|nothing from) .*number 3"):
        run_all(die_while_sending)
    assert time.monotonic() - started < 30.0
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("function", "message"),
    [(fail_unusually, r"got Unusual: \d and \d"), (return_a_lock, "got TypeError: cannot pickle")],
)
def test_what_cannot_be_sent_back_is_an_error(function: Callable[[int], Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run_all(function)
    assert not multiprocessing.active_children()


def die_while_counting(portion: int) -> dict[str, str]:
    if portion == 3:
        with cache_build._finished.get_lock():
            os.kill(os.getpid(), signal.SIGKILL)
    return {}


class Bar:
    """Of a progress display."""

    n = 0

    def update(self, count: int) -> None:
        self.n += count


def test_a_builder_that_dies_with_the_counters_lock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build, "_build_in_worker", die_while_counting)
    monkeypatch.setattr(cache_build, "_logs_of", str)
    with pytest.raises(WorkerError, match=r"got one that died .* while at 3; finished parts stay"):
        cache_build._build_in_processes(range(8), 2, Bar())
    assert not multiprocessing.active_children()


def test_progress_of_a_long_task_is_not_taken_for_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0.3")  # less than a process takes to start
    ticks = iter(range(10**9))
    results = as_they_finish(slow, range(2), 1, on_tick=lambda: next(ticks))
    assert [result for _, result in results] == [0, 1]
    with pytest.raises(WorkerError):
        list(as_they_finish(slow, range(2), 1))


def test_an_error_of_a_task_is_the_callers() -> None:
    with pytest.raises(ValueError, match="three"):
        run_all(fail_at_three)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan"])
def test_the_limit_must_be_a_positive_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, value)
    with pytest.raises(
        WorkerError, match=f"{LIMIT_VARIABLE} must be a number of seconds above 0, got '{value}'"
    ):
        worker_limit_s()


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import time\n"
        "from drivefine_agent.worker_processes import as_they_finish\n"
        "if __name__ == '__main__':\n"
        "    list(as_they_finish(time.sleep, [60.0, 60.0], 2))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + 30.0
    while len(children.read_text().split()) < 3:  # two workers and the resource tracker
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)  # the watching threads start
    pids = children.read_text().split()
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
