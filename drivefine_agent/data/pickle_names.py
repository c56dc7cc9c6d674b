"""Renaming what a pickle refers to, so that it loads where the classes have other names than here.

A pickle names the classes and functions it needs. With these names exchanged, a file written with our own
records and numpy 2 is, to NAVSIM on numpy 1.23, a file of its own classes; nothing of NAVSIM has to be
importable here, and no module is ever registered under a foreign name.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable

PROTOCOL = 3
"""The last protocol without frames: names can be exchanged in it without moving length fields."""


def rename_globals(pickled: bytes, rename: Callable[[str, str], tuple[str, str]]) -> bytes:
    """A pickle of protocol 3 with other names.

    Only names are touched: the positions come from the parsed opcodes, so data that happens to look like a
    name stays as it is.

    Args:
      pickled: of protocol 3 (or below).
      rename: (module, name) -> (module, name) that takes its place.
    """
    pieces: list[bytes] = []
    last = 0
    for opcode, argument, position in pickletools.genops(pickled):
        if opcode.name != "GLOBAL":
            continue
        assert position is not None
        module, name = str(argument).split(" ")
        old = f"c{module}\n{name}\n".encode()
        new = "c{}\n{}\n".format(*rename(module, name)).encode()
        pieces += [pickled[last:position], new]
        last = position + len(old)
    return b"".join([*pieces, pickled[last:]])


def numpy_1_name(module: str, name: str) -> tuple[str, str]:
    """`numpy._core` (numpy 2) is called `numpy.core`, as numpy 1.x has it; numpy 2 reads both."""
    return (module.replace("numpy._core.", "numpy.core.", 1), name)


def with_numpy_1_names(pickled: bytes) -> bytes:
    """A pickle of protocol 3 in which numpy's functions have the names that numpy 1.x knows."""
    return rename_globals(pickled, numpy_1_name)


def named_modules(pickled: bytes) -> set[str]:
    """Dotted texts in a pickle of any protocol among which are all modules that it names."""
    found = set()
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            found.add(str(argument).split(" ")[0])
        elif "UNICODE" in opcode.name and "." in str(argument):  # protocol 4 pushes names like any text
            found.add(str(argument))
    return found
