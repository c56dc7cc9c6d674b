"""The lock of a folder, with real processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from drivefine_agent.data.folder_lock import LOCK_NAME, FolderLock, check_locks
from drivefine_agent.errors import DataError

HOLD = """
import os, sys, time
from drivefine_agent.data.folder_lock import FolderLock
lock = FolderLock(sys.argv[1])
is_child = sys.argv[2] == "fork" and os.fork() == 0
if is_child or sys.argv[2] != "fork":
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def hold(folder: Path, mode: str = "") -> tuple[subprocess.Popen[str], str]:
    """A process that holds the lock, and what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), mode], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_another_process_is_refused_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    process, _ = hold(folder)
    with process:
        with pytest.raises(DataError) as caught:
            FolderLock(folder)
        process.kill()
    text = str(caught.value)
    for part in (
        str(folder),
        f"process {process.pid} on ",
        "since 20",
        "import os, sys, time",
        "wait for it",
    ):
        assert part in text


def test_the_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    process, _ = hold(tmp_path)
    with process:
        process.send_signal(signal.SIGKILL)
    with FolderLock(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / LOCK_NAME).read_text()


def test_the_lock_ends_with_its_process_although_a_forked_child_lives(tmp_path: Path) -> None:
    process, child = hold(tmp_path, "fork")
    with process:
        process.kill()
    os.kill(int(child), 0)  # alive
    FolderLock(tmp_path).release()
    os.kill(int(child), signal.SIGKILL)


def test_nothing_is_said_once_it_is_released_and_a_file_alone_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("process 1 on a machine that was switched off")
    lock = FolderLock(tmp_path)
    lock.release()
    lock.release()
    assert (tmp_path / LOCK_NAME).read_bytes() == b""
    FolderLock(tmp_path).release()


def test_a_holder_file_of_others_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        (tmp_path / LOCK_NAME).write_bytes(b"\x1b[2J\xff\n")
        with pytest.raises(DataError, match=r"in use by \[2J\ufffd: wait"):
            FolderLock(tmp_path)
        (tmp_path / LOCK_NAME).write_bytes(b"")
        with pytest.raises(DataError, match="in use by a process that has left no name: wait"):
            FolderLock(tmp_path)


def test_a_file_system_without_locks_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match=r"No locks available.*do not start a second command"):
        FolderLock(tmp_path).release()


def test_a_folder_that_was_replaced_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    """`rm -rf run`, and the same command again, while the first one still computes."""
    folder = tmp_path / "run"
    first = FolderLock(folder)
    check_locks(folder / "checkpoints" / "1")
    folder.rename(tmp_path / "away")
    with pytest.raises(DataError, match=r"must stay where it is .* got another one or none at .*run: put"):
        check_locks(folder / "checkpoints" / "1")
    with FolderLock(folder):
        with pytest.raises(DataError, match="must stay where it is"):
            first.check()
        check_locks(tmp_path / "elsewhere")
    first.release()
    check_locks(folder)


def test_a_folder_that_vanishes_while_it_is_locked_is_locked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, take = tmp_path / "run", fcntl.flock

    def vanish_first(file: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", take)
        folder.rename(tmp_path / "away")
        take(file, operation)

    monkeypatch.setattr(fcntl, "flock", vanish_first)
    with FolderLock(folder):
        assert (folder / LOCK_NAME).read_text().startswith(f"process {os.getpid()}")
        with pytest.raises(DataError, match="one process at a time"):
            FolderLock(folder)


def test_a_lock_can_be_waited_for(tmp_path: Path) -> None:
    process, _ = hold(tmp_path)
    with process:
        with pytest.raises(DataError, match="one process at a time"):
            FolderLock(tmp_path, wait_s=0.5)
        threading.Timer(1.0, process.kill).start()
        FolderLock(tmp_path, wait_s=30.0).release()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file/run/\.lock: "):
        FolderLock(tmp_path / "file" / "run")
