"""The only place where pickles are read: an unpickler that builds builtins and numpy arrays, nothing else.

A pickle is a program. Every function or class it wants to call has to be looked up by name first, so a
refusal at that lookup happens before anything foreign has run. Of numpy only its reconstructing functions
are offered, each behind a guard that accepts the arguments numpy itself writes and no others.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drivefine_agent.data.pickle_scan import check_opcodes
from drivefine_agent.errors import DataError, UnsafePickleError

MAX_PICKLE_BYTES = 2 * 1024**3
"""Files above this are refused before they are read. A log of NAVSIM has a few tens of megabytes."""

_MAX_NESTING = 64
_MAX_ITEMS_PER_BYTE = 4
_ALWAYS_ALLOWED_ITEMS = 2**16
_PLAIN_DTYPE = re.compile(r"[biufcSUO]\d{0,6}")

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


class Guard:
    """A callable that a pickle may call, but whose attributes it cannot set."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        """What the function returns, which checks its arguments itself."""
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafePickleError(f"a pickle tried to set the attribute {name!r} of a function")

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError(f"a pickle tried to set the state of a function, got {type(state).__name__}")


def _forbid_call(*_args: Any) -> Any:
    raise UnsafePickleError("numpy.ndarray may only be named in a pickle, not called")


_NDARRAY = Guard(_forbid_call)  # stands for the class numpy.ndarray, which appears as an argument only


class _Dtype:
    """Stands for a dtype until the pickle is read: numpy's own would believe whatever state a pickle sets."""

    __slots__ = ("value",)
    value: np.dtype

    def __init__(self, spec: Any, *_align_and_copy: Any) -> None:
        if not isinstance(spec, str) or not _PLAIN_DTYPE.fullmatch(spec):
            raise UnsafePickleError(f"only plain dtypes are read from a pickle, got {spec!r:.40}")
        self.value = np.dtype(spec)

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subarray, field names, fields, size, alignment, flags)
        if not isinstance(state, tuple) or len(state) < 8 or state[1] not in ("<", ">", "|", "="):
            raise UnsafePickleError("a dtype in a pickle has a state that numpy does not write")
        if state[2:5] != (None, None, None) or state[5] not in (-1, self.value.itemsize):
            raise UnsafePickleError(
                "only plain dtypes are read from a pickle, got one with fields or of odd size"
            )
        if state[1] in "<>":
            self.value = self.value.newbyteorder(state[1])


class _PickledArray(np.ndarray):
    """An array whose state is checked before numpy sees it; `_plain` turns it into a plain one."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Dtype):
            raise UnsafePickleError("a numpy array in a pickle has a state that numpy does not write")
        version, shape, dtype, is_fortran, data = state
        size = _size(shape)
        if dtype.value.itemsize == 0 and size > 0:  # any number of items in no bytes
            raise UnsafePickleError(
                f"the items of a numpy array in a pickle must have a size, got {size} items of no size"
            )
        if dtype.value.hasobject:
            is_fitting = isinstance(data, list) and len(data) == size
        else:
            is_fitting = isinstance(data, bytes) and len(data) == size * dtype.value.itemsize
        if not is_fitting:
            raise UnsafePickleError("the data of a numpy array in a pickle do not fit its shape and dtype")
        state = (version, shape, dtype.value, bool(is_fortran), data)
        super().__setstate__(state)


def _size(shape: Any) -> int:
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise UnsafePickleError(f"the shape of a numpy array must be a tuple of counts, got {shape!r:.40}")
    return math.prod(shape)


def _empty_array(subtype: Any, shape: Any, typecode: Any) -> np.ndarray:
    """The empty array that numpy's `_reconstruct` makes before the state is set."""
    if subtype is not _NDARRAY or shape != (0,) or typecode not in (b"b", "b"):
        raise UnsafePickleError(
            f"only plain numpy arrays can be read from a pickle, got shape {shape!r:.40} and type "
            f"{typecode!r:.40}"
        )
    return np.empty((0,), dtype=np.int8).view(_PickledArray)


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(buffer, bytes | bytearray) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise UnsafePickleError(
            "a numpy array in a pickle must be made from bytes and a dtype"
            f", got {type(buffer).__name__} and {type(dtype).__name__}"
        )
    _size(shape)
    return np.frombuffer(buffer, dtype=dtype.value).reshape(shape, order=order)


def _scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, _Dtype) or dtype.value.hasobject:
        raise UnsafePickleError(
            f"a numpy scalar in a pickle must have a plain dtype, got {type(dtype).__name__}"
        )
    if not isinstance(data, bytes) or len(data) != dtype.value.itemsize:
        raise UnsafePickleError(
            "a numpy scalar in a pickle must be made from as many bytes as its dtype has"
            f", got {type(data).__name__} for {dtype.value}"
        )
    if not data:  # an empty text
        return dtype.value.type()
    return np.frombuffer(data, dtype=dtype.value)[0]


def _latin1_encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How pickles of protocol 2 and below write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(
            "only latin1 text can stand for bytes in a pickle"
            f", got {type(text).__name__} and {encoding!r:.40}"
        )
    return text.encode("latin1")


def _no_bytes(*args: Any) -> bytes:
    """How pickles of protocol 2 and below write empty bytes."""
    if args:
        raise UnsafePickleError(f"bytes may only be called without arguments in a pickle, got {len(args)}")
    return b""


def _members(items: Any) -> list[Any]:
    """The members of a set, as pickles of protocol 3 and below list them; see `pickle_scan` on keys."""
    if not isinstance(items, list) or not all(map(_is_member, items)):
        raise UnsafePickleError(
            "a set in a pickle must be made from a list of texts, bytes or small numbers"
            f", got {type(items).__name__}"
        )
    return items


def _is_member(item: Any) -> bool:
    is_small = isinstance(item, int) and item.bit_length() <= 64
    return is_small or item is None or isinstance(item, str | bytes | float)


def _set(items: Any) -> set[Any]:
    return set(_members(items))


def _frozenset(items: Any) -> frozenset[Any]:
    return frozenset(_members(items))


def _numpy_names() -> dict[tuple[str, str], Any]:
    """The names under which numpy 1.x and 2.x write arrays, scalars and dtypes."""
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): Guard(_Dtype),
        ("_codecs", "encode"): Guard(_latin1_encode),
        ("__builtin__", "bytes"): Guard(_no_bytes),
        ("builtins", "set"): Guard(_set),
        ("builtins", "frozenset"): Guard(_frozenset),
        ("__builtin__", "set"): Guard(_set),
        ("__builtin__", "frozenset"): Guard(_frozenset),
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = Guard(_empty_array)
        names[f"{core}.multiarray", "scalar"] = Guard(_scalar)
        names[f"{core}.numeric", "_frombuffer"] = Guard(_frombuffer)
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
            known = "" if self._allow is NUMPY_AND_BUILTINS else ", and the known classes of its format,"
            raise UnsafePickleError(
                f"only builtin containers and numpy arrays{known} are read from a pickle, but it names "
                f"{module}.{name}: {self._where}; nothing of it was executed, do not open this file with a "
                f"plain unpickler"
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
    try:
        check_opcodes(data)
        value = _RestrictedUnpickler(io.BytesIO(data), allow, where).load()
    except UnsafePickleError as error:
        if where in str(error):
            raise
        raise UnsafePickleError(f"{error}: {where}; do not open this file with a plain unpickler") from error
    except DataError as error:  # of a guard's own making: what it got was well-formed, but not usable
        raise DataError(f"{error}: {where}; fetch or write it again") from error
    except _DAMAGE as error:
        raise DataError(
            f"not a complete pickle ({type(error).__name__}: {error}): {where}, {len(data)} bytes; "
            f"the file is truncated or of another format, fetch or write it again"
        ) from error
    return _Walk(where, _MAX_ITEMS_PER_BYTE * len(data) + _ALWAYS_ALLOWED_ITEMS).plain(value)[0]


class PickledObject:
    """Base of what stands for a foreign class in an allow-list: an object that holds fields and no code."""

    __slots__ = ()

    def pickled_fields(self) -> dict[str, Any]:
        """The fields that the pickle has set, by name; changed in place when the pickle is read."""
        raise NotImplementedError


class _Walk:
    """Puts plain numpy objects in place of the checked stand-ins, within lists, dicts and fields.

    A container that occurs a million times in a few bytes of pickle is visited once, but counted a million
    times: whoever reads the value meets it as often, and may copy it each time.
    """

    def __init__(self, where: str, most: int) -> None:
        self._where = where
        self._most = most
        self._seen: dict[int, tuple[Any, Any, int]] = {}

    def plain(self, value: Any, depth: int = 0) -> tuple[Any, int]:
        """A plain value and how many items it has, counting shared ones as often as they occur."""
        if depth > _MAX_NESTING:
            raise DataError(
                f"the data in a pickle may be nested {_MAX_NESTING} deep, got more: {self._where}; "
                "this is no file of NAVSIM"
            )
        if isinstance(value, str | bytes | bytearray):
            return value, 1 + len(value) // 8
        if not isinstance(value, _CONTAINERS):
            return value, 1
        known = self._seen.get(id(value))
        if known is None:
            self._seen[id(value)] = (value, value, 1)  # for a container that holds itself
            made, count = self._visit(value, depth)
            if count > self._most:
                raise UnsafePickleError(
                    f"the data in a pickle may have at most {self._most} items for its size, shared ones "
                    f"counted as often as they occur, got more: {self._where}; this is no file of NAVSIM"
                )
            known = self._seen[id(value)] = (value, made, count)
        return known[1], known[2]

    def _visit(self, value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, _PickledArray):
            value = value.view(np.ndarray)
        if isinstance(value, _Dtype):
            return value.value, 1
        if isinstance(value, Guard | type):
            raise UnsafePickleError(
                f"the pickle holds a function or class instead of data: {self._where}; "
                "do not open this file with a plain unpickler"
            )
        if isinstance(value, tuple):
            pairs = [self.plain(item, depth + 1) for item in value]
            return tuple(item for item, _ in pairs), 1 + sum(count for _, count in pairs)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return value, 1 + value.nbytes // 8
        items: Any = value
        if isinstance(value, np.ndarray):
            items = value.reshape(-1) if value.flags.c_contiguous else value.T.reshape(-1)
        elif isinstance(value, PickledObject):
            items = value.pickled_fields()
        total = 1
        for key, item in items.items() if isinstance(items, dict) else enumerate(items):
            made, count = self.plain(item, depth + 1)
            total += count
            if made is not item:
                items[key] = made
        return value, total


_CONTAINERS = (list, dict, tuple, np.ndarray, _Dtype, Guard, type, PickledObject)
