"""One process at a time writes into a folder: the lock of a dataset, cache, run or evaluation.

The lock is the kernel's (`flock`) on a file `.lock` in the folder: it ends with the process, however that
ends, and a file that is merely there locks nothing. While it is held, the file says by whom.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
import warnings
from pathlib import Path
from types import TracebackType
from weakref import WeakSet

from drivefine_agent.data.atomic import write_error
from drivefine_agent.errors import DataError

LOCK_NAME = ".lock"
_NOT_SUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_HOLDER_LENGTH = 1000
_WAIT_STEP_S = 0.2


class FolderLock:
    """Held from its making until `release`, the end of a `with` block, or the end of the process."""

    def __init__(self, folder: str | Path, wait_s: float = 0.0) -> None:
        """Makes the folder if it is missing, and takes its lock.

        A file system without locks gives a warning, not an error: there, the user sees to it.

        Args:
          folder: to be written into.
          wait_s: how long another process's lock is waited for.

        Raises:
          DataError: another process holds the lock, or the folder cannot be written.
        """
        self.folder = Path(folder)
        self._path = self.folder / LOCK_NAME
        end = time.monotonic() + wait_s
        while not self._take(is_last=time.monotonic() >= end):
            time.sleep(_WAIT_STEP_S)
        self._write(f"process {os.getpid()} on {socket.gethostname()}, since {_now()}: {_command()}")

    def _take(self, is_last: bool) -> bool:
        """Whether the lock is taken now; that another process has it is an error if this is the last try."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
        except OSError as error:
            raise write_error(self._path, error) from error
        _HELD.add(self)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = self._holder()
            self._file.close()
            if not is_last:
                return False
            raise DataError(
                f"one process at a time may write into a folder, got a second one for {self.folder}, which "
                f"is in use by {holder}: wait for it or stop it, or choose another folder"
            ) from error
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                self._file.close()
                raise write_error(self._path, error) from error
            warnings.warn(
                f"a folder that is written to should be locked, got {error.strerror!r} for {self._path}: do "
                "not start a second command that writes there",
                stacklevel=3,
            )
        if not self._is_in_place():  # the folder was removed between opening and locking: once more
            self._file.close()
            return False
        return True

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except OSError:
            return False

    def check(self) -> None:
        """Sees that the folder is still the one that was locked.

        Raises:
          DataError: it was removed, renamed or replaced, so that another process may write under its name.
        """
        if not self._file.closed and not self._is_in_place():
            raise DataError(
                f"a folder must stay where it is while a command writes there, got another one or none at "
                f"{self.folder}: put it back and start the same command again, or choose another folder"
            )

    def release(self) -> None:
        """Lets others write; harmless when done twice."""
        if not self._file.closed:
            self._write("")
            self._file.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _write(self, text: str) -> None:
        try:
            self._file.truncate(0)
            self._file.write(text.encode(errors="replace")[:_HOLDER_LENGTH])
            self._file.flush()
        except OSError:  # on a full disk the lock holds all the same, without a name
            return

    def _holder(self) -> str:
        """Whoever holds the lock, as the file says; anybody may have written the file."""
        self._file.seek(0)
        text = self._file.read(_HOLDER_LENGTH).decode(errors="replace")
        text = "".join(letter if letter.isprintable() else " " for letter in text).strip()
        return text or "a process that has left no name"


def check_locks(path: str | Path) -> None:
    """Sees that the locked folders that a path lies in are still the ones that this process has locked.

    Raises:
      DataError: one is not; see `FolderLock.check`.
    """
    above = Path(path).absolute()
    for lock in list(_HELD):
        if lock.folder.absolute() in (above, *above.parents):
            lock.check()


_HELD: WeakSet[FolderLock] = WeakSet()


def _forget() -> None:
    """In a forked child, such as a data loader's: the lock is its parent's, and ends with that."""
    for lock in _HELD:
        lock._file.close()


os.register_at_fork(after_in_child=_forget)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _command() -> str:
    return " ".join(sys.orig_argv)
