"""Files and folders that are either complete under their name or absent, whatever dies meanwhile.

What is written has a temporary name beside the final one, `.NAME.HOST.PID.RANDOM.part`; it is flushed to the
disk and then renamed. What a killed process left behind is removed on the same machine, until that is started
again, by `remove_leftovers`, which all but `write_bytes` call for their own name; nothing reads these names.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from drivefine_agent.errors import DataError, DiskFullError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.part")
_FULL_TEXTS = ("No space left on device", "os error 28", "Disk quota exceeded", "File too large")


def write_bytes(path: str | Path, content: bytes, *, is_durable: bool = True) -> None:
    """Write a file so that no reader ever sees half of it; missing folders are made.

    Args:
      path: where to; a symbolic link stays, the file it names is replaced.
      content: of the whole file.
      is_durable: wait until it is on the disk. Without, a file written shortly before the machine loses power
        may be lost or empty; a killed process does no harm.

    Raises:
      DiskFullError: the disk, quota or allowed file size does not suffice.
      DataError: the place cannot be written.
    """
    final = _final(path)
    temporary = temporary_name(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, final)
        if is_durable:
            flush(final.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        _remove(temporary)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file to write, that gets its name when it is left without an error; missing folders are made.

    Raises:
      DiskFullError: the disk, quota or allowed file size does not suffice.
      DataError: the place cannot be written.
    """
    with atomic_path(path) as temporary:
        with temporary.open("xb") as file:
            yield file


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """The temporary name of a file, for libraries that open it themselves. Otherwise as `atomic_file`."""
    final = _final(path)
    temporary = temporary_name(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(final.parent, final.name)
        yield temporary
        flush(temporary)
        os.replace(temporary, final)
        flush(final.parent)
    # What libraries raise when the disk is full: OSError, or their own error with the system's text.
    except Exception as error:
        if _is_about(error, temporary):
            raise write_error(path, error) from error
        raise
    finally:
        _remove(temporary)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder to fill, that gets its name when it is left without an error.

    A folder that has the name already is replaced. A process killed between the two renames leaves the old
    one as `.NAME.old`; `restore` puts it back, and so does the next `atomic_folder`.

    Raises:
      DiskFullError: the disk, quota or allowed file size does not suffice.
      DataError: the place cannot be written.
    """
    final = _final(path)
    temporary = temporary_name(final)
    try:
        restore(final)
        remove_leftovers(final.parent, final.name)
        temporary.mkdir(parents=True)
        yield temporary
        publish(temporary, final)
    except Exception as error:  # see atomic_path
        if _is_about(error, temporary):
            raise write_error(path, error) from error
        raise
    finally:
        _remove(temporary)


def publish(temporary: Path, final: Path) -> None:
    """Flush a complete folder to the disk and give it its name, in place of the one that has it.

    Raises:
      OSError: it cannot be flushed or renamed.
    """
    for item in [*temporary.rglob("*"), temporary]:
        flush(item)
    old = _old(final)
    if final.exists():
        os.replace(final, old)
    os.replace(temporary, final)
    flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no reader ever sees half of it; `remove_leftovers` ends what a kill cuts short.

    Raises:
      OSError: it cannot be renamed or removed.
    """
    temporary = temporary_name(path)
    os.replace(path, temporary)
    shutil.rmtree(temporary)


def restore(final: Path) -> None:
    """Put back the folder that a killed `publish` had moved aside, or remove it if it is replaced."""
    old = _old(final)
    if not old.exists():
        return
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(old, final)


def remove_leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """Remove what writers of this machine that no longer live left in a folder; returns what was removed.

    Args:
      folder: looked at, without the folders in it.
      name: only temporary files of this final name.
    """
    removed = []
    try:
        found = [Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(".part")]
    except FileNotFoundError:
        return []
    for path in found:
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or match["host"] != _host() or (name is not None and match["name"] != name):
            continue
        if not _is_alive(int(match["pid"])):
            _remove(path)
            removed.append(path)
    return removed


def reserve(path: Path) -> None:
    """Give a file the disk space that its size says, before it is mapped into memory and written there.

    A mapped file that outgrows the disk ends the process with a bus error, without a word.

    Raises:
      OSError: there is not so much room.
    """
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: str | Path, error: Exception) -> DataError:
    """What to raise when `path` could not be written because of `error`."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if _is_full(error):
        return DiskFullError(
            f"a file must fit on its disk, got {reason!r}: cannot write {path}; nothing was left under that "
            "name, make room (df, quota, ulimit -f) and start the same command again"
        )
    return DataError(f"cannot write {path}: {reason}; see to the folder and start the same command again")


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(text in str(error) for text in _FULL_TEXTS)


def _is_about(error: Exception, temporary: Path) -> bool:
    """Whether an error is about what is being written, not about something that is read meanwhile."""
    if isinstance(error, DataError):
        return False
    if _is_full(error):
        return True
    return isinstance(error, OSError) and (
        error.filename is None or str(error.filename).startswith(str(temporary))
    )


def _final(path: str | Path) -> Path:
    path = Path(path)
    return path.resolve() if path.is_symlink() else path


def _old(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def temporary_name(final: Path) -> Path:
    """A new name beside `final` for what is being written, by which `remove_leftovers` knows whose it is."""
    return final.with_name(f".{final.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.part")


@cache
def _host() -> str:
    """This machine since it was started, and the container on it: only there is a process number one process.

    Names of machines are no proof: two may be called alike.
    """
    name = socket.gethostname().split(".")[0] or "localhost"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{name}-{os.stat('/proc/self/ns/pid').st_ino:x}-{boot}"
    except OSError:
        return name


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


def _remove(path: Path) -> None:
    """Where it is possible: the error that led here counts more."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
