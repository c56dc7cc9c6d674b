"""The only place where pickles are read: an unpickler that can build builtins and numpy arrays and nothing else.

A pickle is a program. Every function or class it wants to call has to be looked up by name first, so a refusal at that
lookup happens before anything foreign has run. Of numpy only three reconstructing functions are offered, each behind
a guard that accepts the arguments numpy itself writes and no others.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drivefine_agent.errors import DataError, UnsafePickleError

MAX_PICKLE_BYTES = 2 * 1024**3
"""Files above this are refused before they are read. A log of NAVSIM has a few tens of megabytes."""

_MAX_SCALAR_BYTES = 1 << 20

# What a damaged or foreign pickle can make the unpickler raise.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
    MemoryError,
    OverflowError,
    RecursionError,
    struct.error,
)


class _Guard:
    """A callable that a pickle may call, but whose attributes it cannot set."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafePickleError(f"a pickle tried to set the attribute {name!r} of a function")

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError("a pickle tried to set the state of a function")


def _forbid_call(*_args: Any) -> Any:
    raise UnsafePickleError("numpy.ndarray may only be named in a pickle, not called")


_NDARRAY = _Guard(_forbid_call)  # stands for the class numpy.ndarray, which appears as an argument only


def _empty_array(subtype: Any, shape: Any, typecode: Any) -> np.ndarray:
    """The empty array that numpy's `_reconstruct` makes before the state is set."""
    if subtype is not _NDARRAY or shape != (0,) or typecode not in (b"b", "b"):
        raise UnsafePickleError("only plain numpy arrays can be read from a pickle")
    return np.empty((0,), dtype=np.int8)


def _dtype(spec: Any, align: Any = False, copy: Any = True) -> np.dtype:
    """A fresh dtype: never the shared one, which a following state would change for the whole process."""
    if not isinstance(spec, str):
        raise UnsafePickleError(f"a dtype in a pickle must be given by its name, got {type(spec).__name__}")
    return np.dtype(spec, bool(align), True)


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(buffer, bytes | bytearray) or not isinstance(dtype, np.dtype):
        raise UnsafePickleError("a numpy array in a pickle must be made from bytes and a dtype")
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or dtype.itemsize > _MAX_SCALAR_BYTES:
        raise UnsafePickleError("a numpy scalar in a pickle must have a plain dtype of sensible size")
    if not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise UnsafePickleError("a numpy scalar in a pickle must be made from as many bytes as its dtype has")
    return np.frombuffer(data, dtype=dtype)[0]


def _latin1_encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How pickles of protocol 2 and below write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError("only latin1 text can stand for bytes in a pickle")
    return text.encode("latin1")


def _numpy_names() -> dict[tuple[str, str], Any]:
    """The names under which numpy 1.x and 2.x write arrays, scalars and dtypes."""
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _Guard(_dtype),
        ("_codecs", "encode"): _Guard(_latin1_encode),
        ("builtins", "set"): set,
        ("builtins", "frozenset"): frozenset,
        ("__builtin__", "set"): set,
        ("__builtin__", "frozenset"): frozenset,
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = _Guard(_empty_array)
        names[f"{core}.multiarray", "scalar"] = _Guard(_scalar)
        names[f"{core}.numeric", "_frombuffer"] = _Guard(_frombuffer)
    return names


NUMPY_AND_BUILTINS: Mapping[tuple[str, str], Any] = _numpy_names()
"""(module, name) -> what the pickle gets instead. The default allow-list."""


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, allow: Mapping[tuple[str, str], Any], where: str) -> None:
        super().__init__(file)
        self._allow = allow
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allow[module, name]
        except KeyError:
            raise UnsafePickleError(
                f"only builtin containers and numpy arrays are read from a pickle, but it names {module}.{name}: "
                f"{self._where}; nothing of it was executed, do not open this file with a plain unpickler"
            ) from None


def load_pickle(
    path: str | Path,
    allow: Mapping[tuple[str, str], Any] = NUMPY_AND_BUILTINS,
    max_bytes: int = MAX_PICKLE_BYTES,
) -> Any:
    """The object in a pickle file.

    Args:
      path: the file.
      allow: (module, name) -> the object the pickle receives for that name. Every other name is refused.
      max_bytes: larger files are refused before they are read.

    Raises:
      UnsafePickleError: the pickle names something that is not in `allow`, or misuses what is.
      DataError: the file is missing, too large, truncated, or no pickle.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise DataError(f"a pickle may have at most {max_bytes} bytes, got {size}: {path}")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the pickle {path}: {error.strerror or error}") from error
    return load_pickle_bytes(data, str(path), allow)


def load_pickle_bytes(
    data: bytes, where: str, allow: Mapping[tuple[str, str], Any] = NUMPY_AND_BUILTINS
) -> Any:
    """The object in a pickle held in memory; `where` names its origin in messages. See `load_pickle`."""
    stream = io.BytesIO(data)
    try:
        value = _RestrictedUnpickler(stream, allow, where).load()
    except UnsafePickleError as error:
        if where in str(error):
            raise
        raise UnsafePickleError(f"{error}: {where}; do not open this file with a plain unpickler") from error
    except _DAMAGE as error:
        raise DataError(
            f"not a complete pickle ({type(error).__name__}: {error}): {where}, {len(data)} bytes; "
            f"the file is truncated or of another format, fetch or write it again"
        ) from error
    if any(value is guard for guard in allow.values()):
        raise UnsafePickleError(f"the pickle holds a function instead of data: {where}")
    return value
