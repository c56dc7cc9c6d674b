"""Tricks with which pickles are known to run code, hang or eat memory, against every allow-list there is."""

from __future__ import annotations

import copyreg
import functools
import importlib
import io
import lzma
import operator
import os
import pickle
import struct
import subprocess
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from watch import watched

from drivefine_agent.data.metric_cache import read_metric_cache
from drivefine_agent.data.metric_cache_pickle import METRIC_CACHE_NAMES
from drivefine_agent.data.nuplan_records import SECOND_STAGE_NAMES
from drivefine_agent.data.safe_pickle import NUMPY_AND_BUILTINS, load_pickle_bytes
from drivefine_agent.data.submission import OFFICIAL_NAMES
from drivefine_agent.errors import DataError, UnsafePickleError

ALLOW_LISTS = {
    "log": NUMPY_AND_BUILTINS,
    "second stage": SECOND_STAGE_NAMES,
    "metric cache": METRIC_CACHE_NAMES,
    "submission": {**NUMPY_AND_BUILTINS, **{name: item for item, name in OFFICIAL_NAMES.items()}},
}


@pytest.fixture(params=ALLOW_LISTS.values(), ids=ALLOW_LISTS.keys())
def load(request: pytest.FixtureRequest) -> Callable[[bytes], object]:
    """Reads a pickle, and makes sure that nothing but reading happens."""
    pickled = pickle.dumps([np.arange(3)])
    load_pickle_bytes(pickled, "warm-up", request.param)

    def load(content: bytes) -> object:
        with watched() as seen:
            try:
                return load_pickle_bytes(content, "evil.pkl", request.param)
            finally:
                assert seen == []

    return load


class Call:
    """Its pickle calls a function when an ordinary unpickler reads it."""

    def __init__(self, function: object, *args: object, state: object = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


CALLS = {
    "os.system": Call(os.system, "true"),
    "posix.system": Call(os.popen, "true"),
    "subprocess.Popen": Call(subprocess.Popen, ["true"]),
    "eval": Call(eval, "1"),
    "exec": Call(exec, "1"),
    "compile": Call(compile, "1", "x", "eval"),
    "getattr": Call(getattr, "x", "upper"),
    "setattr": Call(setattr, types.SimpleNamespace(), "a", 1),
    "open": Call(open, "evil", "w"),
    "import": Call(__import__, "os"),
    "importlib": Call(importlib.import_module, "os"),
    "attrgetter": Call(operator.attrgetter("system"), 1),
    "methodcaller": Call(operator.methodcaller("system", "true"), 1),
    "itemgetter": Call(operator.itemgetter(0), [1]),
    "partial": functools.partial(print, "x"),
    "a function as data": os.system,
    "a class as data": subprocess.Popen,
    "a module's attribute": np.load,
    "numpy.load": Call(np.load, "evil.npy"),
    "numpy.memmap": Call(np.memmap, "evil.npy", "uint8", "w+", 0, 8),
    "numpy.fromfile": Call(np.fromfile, "evil.npy"),
    "numpy.frompyfunc": Call(np.frompyfunc, print, 1, 1),
    "pickle.loads": Call(pickle.loads, b"N."),
    "object's reconstructor": Call(copyreg._reconstructor, Exception, object, None),
    "a generic alias": list[int],
    "a bytearray of a size": Call(bytearray, 1 << 33),
    "a list of a range": Call(list, range(1 << 33)),
    "range": range(1 << 40),
    "complex": 1j,
    "a slice": slice(1, 2),
    "an array of commands": np.array([Call(os.system, "true")], dtype=object),
    "a state with a command": [Call(types.SimpleNamespace, state={"a": Call(os.system, "true")})],
    "a dict with a command as key": {Call(os.getpid): 1},
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("trick", CALLS.values(), ids=CALLS.keys())
def test_foreign_functions_and_classes_are_refused(
    trick: object, protocol: int, load: Callable[[bytes], object]
) -> None:
    content = pickle.dumps(trick, protocol)
    with pytest.raises(UnsafePickleError, match=r"evil\.pkl.*do not open this file with a plain unpickler"):
        load(content)


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"\x8c" + bytes([len(encoded)]) + encoded


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def old_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


ARRAY = old_global("numpy.core.multiarray", "_reconstruct") + b"(" + old_global("numpy", "ndarray")
DTYPE = old_global("numpy", "dtype") + b"X\x02\0\0\0f8\x89\x88\x87R"
OBJECTS = old_global("numpy", "dtype") + b"X\x02\0\0\0O8\x89\x88\x87R"
EMPTY_ARRAY = ARRAY + b"K\0\x85U\x01btR"

NAMES = {
    "dots in a name": stack_global("numpy", "f2py.os.system"),
    "dots in a name of an allowed module": stack_global("numpy", "ndarray.__class__.__base__"),
    "an attribute of an allowed name": stack_global("builtins", "set.__init__.__globals__"),
    "dots of protocol 3": old_global("numpy", "dtype.__class__"),
    "a module inside a module": stack_global("numpy.core.multiarray", "os.system"),
    "an empty name": stack_global("", ""),
    "a relative module": stack_global(".", "x"),
    "a name that is a number": b"K\x01K\x02\x93",
    "a name that is a list": b"]]\x93",
    "a name in capitals": stack_global("NUMPY", "ndarray"),
    "a name with a space": old_global("numpy ", "ndarray"),
    "a class of Python 2": b"(ios\nsystem\n",
    "an object of Python 2": b"(" + old_global("numpy", "dtype") + b"o",
    "an extension code": b"\x82\x01",
    "an extension code of two bytes": b"\x83\x01\0",
    "an extension code of four bytes": b"\x84\x01\0\0\0",
    "a persistent identifier": b"Pos.system\n",
    "a persistent identifier on the stack": b"K\x01Q",
    "an out-of-band buffer": b"\x97",
    "a read-only buffer": b"C\x01a\x98",
    "keyword arguments": stack_global("builtins", "set") + b")}\x92",
    "a copy of the stack": b"K\x01\x32\x86",
}


@pytest.mark.parametrize("body", NAMES.values(), ids=NAMES.keys())
def test_names_and_instructions_outside_the_allow_list_are_refused(
    body: bytes, load: Callable[[bytes], object]
) -> None:
    with pytest.raises(DataError, match=r"evil\.pkl"):
        load(b"\x80\x04" + body + b".")


class OrdinaryRestricted(pickle.Unpickler):
    """What Python's documentation recommends."""

    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"{module}.{name} is forbidden")


def test_an_extension_code_that_some_package_has_registered_stays_refused(
    load: Callable[[bytes], object],
) -> None:
    """Once it was used anywhere, Python's unpickler takes it from a cache without asking `find_class`."""
    copyreg.add_extension("os", "system", 0x7F)
    try:
        assert pickle.loads(b"\x80\x02\x82\x7f.") is os.system  # fills the cache
        assert OrdinaryRestricted(io.BytesIO(b"\x80\x02\x82\x7f.")).load() is os.system
        with pytest.raises(UnsafePickleError, match="EXT1"):
            load(b"\x80\x02\x82\x7f.")
    finally:
        copyreg.remove_extension("os", "system", 0x7F)


MISUSES = {
    "the state of a function": old_global("numpy", "dtype") + b"}X\x01\0\0\0aK\x01sb",
    "the __dict__ of a function": old_global("numpy", "dtype") + b"}X\x08\0\0\0__dict__}sb",
    "the __class__ of a function": old_global("numpy", "dtype") + b"}X\x09\0\0\0__class__K\x01sb",
    "the slots of a function": old_global("numpy", "dtype") + b"N}X\x09\0\0\0_functionK\x01s\x86b",
    "a new object of a function": old_global("numpy", "dtype") + b")\x81",
    "the state of a number": b"K\x01}X\x01\0\0\0aK\x01sb",
    "the state of a text": b"U\x01a}X\x01\0\0\0aK\x01sb",
    "calling a text": b"U\x06system)R",
    "calling a list": b"])R",
    "arguments that are no tuple": old_global("numpy", "dtype") + b"]R",
    "the state of an array": EMPTY_ARRAY + b"}X\x05\0\0\0shapeK\x01sb",
    "an array of any shape": EMPTY_ARRAY + b"(K\x01\x8a\x06\0\0\0\0\0\x7f\x85" + DTYPE + b"\x89C\0tb",
    "an array of a negative shape": EMPTY_ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + DTYPE + b"\x89C\0tb",
    "pointers as objects": EMPTY_ARRAY + b"(K\x01K\x01\x85" + OBJECTS + b"\x89C\x08\1\1\1\1\1\1\1\1tb",
    "a scalar of pointers": old_global("numpy.core.multiarray", "scalar")
    + OBJECTS
    + b"C\x08\1\1\1\1\1\1\1\1\x86R",
    "a buffer of pointers": old_global("numpy.core.numeric", "_frombuffer")
    + b"(C\x08\1\1\1\1\1\1\1\1"
    + OBJECTS
    + b"K\x01\x85U\x01CtR",
    "items without a size": EMPTY_ARRAY
    + b"(K\x01\x8a\x06\0\0\0\0\0\x7f\x85"
    + old_global("numpy", "dtype")
    + b"X\x02\0\0\0S0\x89\x88\x87R"
    + b"\x89C\0tb",
    "appending to a function": old_global("numpy", "dtype") + b"K\x01a",
    "an item of a function": old_global("numpy", "dtype") + b"K\x01K\x01s",
    "adding to a function": old_global("numpy", "dtype") + b"(K\x01\x90",
    "a set of lists": old_global("builtins", "set") + b"]]a\x85R",
    "a set of a text": old_global("builtins", "set") + b"U\x01a\x85R",
}


@pytest.mark.parametrize("body", MISUSES.values(), ids=MISUSES.keys())
def test_what_is_allowed_cannot_be_misused(body: bytes, load: Callable[[bytes], object]) -> None:
    with pytest.raises(DataError, match=r"evil\.pkl"):
        load(b"\x80\x04" + body + b".")


def doublings(count: int, make: bytes = b"\x86") -> bytes:
    """Nested tuples (frozensets, ...), each of the one before, twice."""
    pieces = [b"K\x01\x85q\0"]
    for level in range(count):
        get = b"h" + bytes([level])
        pieces.append((b"(" if make == b"\x91" else b"") + get + get + make + b"q" + bytes([level + 1]))
    return b"".join(pieces)


def declared(code: bytes, length: bytes, num_given: int = 3) -> bytes:
    return code + length + b"a" * num_given


HUGE_4, HUGE_8 = struct.pack("<I", 0x7FFFFFF0), struct.pack("<Q", 1 << 40)

BOMBS = {
    "a memo index of 2^27": b"Nr\0\0\0\x08",
    "a memo index as text": b"Np134217728\n",
    "a memo index with a sign": b"Np-1\n",
    "a memo index that was never set": b"j\0\0\0\x08",
    "a key that hashes for ever": b"}" + doublings(25) + b"K\x01s",
    "keys that hash for ever": b"}(" + doublings(25) + b"K\x01u",
    "a dict from a mark": b"(" + doublings(25) + b"K\x01d",
    "a member that hashes for ever": b"\x8f(" + doublings(25) + b"\x90",
    "a frozen member that hashes for ever": b"(" + doublings(25) + b"\x91",
    "members in a list": old_global("builtins", "set") + b"](" + doublings(25) + b"e\x85R",
    "a frozenset of a tuple": old_global("builtins", "frozenset") + b"](" + doublings(25) + b"e\x85R",
    "numbers with one hash": b"}("
    + b"".join(
        b"\x8a\x0a" + ((2**61 - 1) * number).to_bytes(10, "little") + b"N" for number in range(1, 2000)
    )
    + b"u",
    "bytes": declared(b"B", HUGE_4),
    "long bytes": declared(b"\x8e", HUGE_8),
    "a byte array": declared(b"\x96", HUGE_8),
    "a short byte array": declared(b"\x96", struct.pack("<Q", 1000)),
    "text": declared(b"X", HUGE_4),
    "long text": declared(b"\x8d", HUGE_8),
    "text of Python 2": declared(b"T", HUGE_4),
    "a number": declared(b"\x8b", HUGE_4),
    "a negative length": declared(b"\x8b", b"\xff\xff\xff\xff"),
    "digits": b"I" + b"9" * 5000 + b"\n",
    "a frame": b"\x95" + HUGE_8 + b"N",
    "a frame inside a frame": b"\x95" + struct.pack("<Q", 10) + b"\x95" + struct.pack("<Q", 1) + b"N",
    "a value over the end of its frame": b"\x95" + struct.pack("<Q", 3) + b"U\x06abcdef",
    "empty containers": b"(" + b"}" * 30_000 + b"t",
    "empty sets": b"(" + b"\x8f" * 30_000 + b"t",
    "marks": b"(" * 1000,
    "a million shared parts": doublings(40) + b"0]" + b"h(a" * 1000,
    "shared lists": b"]q\0(" + b"K\x01" * 1000 + b"e0]q\1(" + b"h\0" * 1000 + b"e0](" + b"h\1" * 1000 + b"e",
    "deep lists": b"]" * 5000 + b"a" * 4999,
    "deep tuples": b")" + b"\x85" * 100_000,
    "nothing on the stack": b"",
    "below the mark": b"K\x01(\x85",
    "a mark that is missing": b"t",
    "pops to below nothing": b"00",
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_refused_before_they_go_off(
    body: bytes, load: Callable[[bytes], object], capfd: pytest.CaptureFixture[str]
) -> None:
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"evil\.pkl"):
        load(b"\x80\x04" + body + b".")
    assert time.perf_counter() - start < 1.0
    assert capfd.readouterr().err == ""  # "SystemError: deallocated bytearray object has exported buffers"


def test_a_small_key_and_a_large_value_are_no_bomb(load: Callable[[bytes], object]) -> None:
    value = {
        "a": (1, (2, (3,))),
        2**63 - 1: 2**200,
        1.5: [()],
        None: {1, "x"},
        True: frozenset([b"y"]),
        b"k": [],
    }
    for protocol in (3, 4, 5):  # those below write bytes as a call
        assert load(pickle.dumps(value, protocol)) == value


def test_what_the_walk_lets_through_python_reads_the_same_way(load: Callable[[bytes], object]) -> None:
    """Recursive and shared values, pops, text memo indices: everything that picklers write."""
    shared = ["x"]
    value: dict[str, object] = {"one": shared, "two": shared, "many": list(range(3000))}
    for protocol in range(6):
        loaded = load(pickle.dumps(value, protocol))
        assert loaded == value
        assert isinstance(loaded, dict)
        assert loaded["one"] is loaded["two"]
    recursive: tuple[list[object]] = ([],)
    recursive[0].append(recursive)
    for protocol in range(2, 6):
        loaded = load(pickle.dumps(recursive, protocol))
        assert isinstance(loaded, tuple)
        assert loaded[0][0] is not None


def xz(content: bytes) -> bytes:
    return lzma.compress(content, preset=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (xz(bytes(100 * 1024**2)), "at most .* when decompressed"),
        (xz(b"\x80\x04(" + b"N" * 1000 + b"t."), "one MetricCache object, got tuple"),
        (xz(b"\x80\x04(" + b"]" * 1_000_000 + b"t."), "times its size in objects"),
        (xz(xz(b"N.")), "not a complete pickle"),
        (xz(b"N.") * 2, "single xz stream"),
        (b"\x1f\x8b\x08" + bytes(20), "xz file"),
        (b"PK\x03\x04" + bytes(20), "xz file"),
        (lzma.compress(b"N.", format=lzma.FORMAT_ALONE), "xz file"),
        (b"", "truncated"),
    ],
    ids=["zeros", "many Nones", "many lists", "twice", "two streams", "gzip", "zip", "lzma alone", "empty"],
)
def test_compressed_bombs_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "metric_cache.pkl"
    path.write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(DataError, match=rf"{message}.*metric_cache\.pkl"):
        read_metric_cache(path)
    assert time.perf_counter() - start < 3.0
