"""Notes what no reader may do while it reads a file: run code, start programs, write, open connections."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import numba.core.dispatcher
import numba.core.serialize

FORBIDDEN = frozenset(
    {
        "compile",
        "ctypes.dlopen",
        "exec",
        "import",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.putenv",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.spawn",
        "os.system",
        "pickle.find_class",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "subprocess.Popen",
        "urllib.Request",
    }
)
"""Audit events of Python that no reader causes once the modules it needs are imported."""

_NUMBA = {numba.core.dispatcher.__file__, numba.core.serialize.__file__}
_OF_KERNELS = FORBIDDEN | {"open"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_seen: list[str] | None = None  # None: nobody watches. A hook cannot be removed, so there is one per process.


def _hook(event: str, args: tuple[object, ...]) -> None:
    if _seen is None or (event in _OF_KERNELS and _makes_kernel(sys._getframe(1))):
        return
    if event == "open":
        path, mode, flags = args
        text = mode if isinstance(mode, str) else ""
        if any(letter in text for letter in "wax+") or (isinstance(flags, int) and flags & _WRITING):
            _seen.append(f"open for writing {path!r}")
    elif event in FORBIDDEN and not (event == "import" and args[0] in sys.modules):
        _seen.append(f"{event} {args!r:.120}")


def _makes_kernel(frame: FrameType | None) -> bool:
    """Whether numba loads or compiles one of our kernels, which it does when a kernel is needed first."""
    while frame is not None:
        if frame.f_code.co_filename in _NUMBA:
            return True
        frame = frame.f_back
    return False


@contextmanager
def watched() -> Iterator[list[str]]:
    """What happens inside that no reader may do, as texts; call the reader once before, for its imports."""
    global _seen
    if _hook not in _installed:
        sys.addaudithook(_hook)
        _installed.append(_hook)
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


_installed: list[object] = []
