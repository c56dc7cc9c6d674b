"""Exchanging the names under which a pickle looks up classes and functions, without touching its data.

A pickle of protocol 3 has no length fields around its opcodes, so a name can be replaced by a longer one.
Protocol 4 and above pack opcodes into frames of known size, where that is impossible.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable

PROTOCOL = 3
"""The protocol in which names can be exchanged."""


def rename_globals(pickled: bytes, rename: Callable[[str, str], tuple[str, str]]) -> bytes:
    """A pickle of protocol 3 with other names.

    Only names are touched: the positions come from the parsed opcodes, so data that happens to look like a
    name stays as it is.

    Args:
      pickled: the pickle.
      rename: (module, name) -> the module and name to write instead.
    """
    pieces: list[bytes] = []
    last = 0
    for opcode, argument, position in pickletools.genops(pickled):
        if opcode.name != "GLOBAL":
            continue
        assert position is not None
        module, name = str(argument).split(" ")
        old = f"c{module}\n{name}\n".encode()
        new_module, new_name = rename(module, name)
        pieces += [pickled[last:position], f"c{new_module}\n{new_name}\n".encode()]
        last = position + len(old)
    return b"".join([*pieces, pickled[last:]])


def numpy_1_name(module: str, name: str) -> tuple[str, str]:
    """`numpy._core` (numpy 2) is called `numpy.core` by numpy 1.x; numpy 2 knows that name too."""
    if module.startswith("numpy._core."):
        return module.replace("numpy._core.", "numpy.core.", 1), name
    return module, name
