import json
import os
import pickle
import subprocess

import numpy as np
import pytest

from drivefine_agent.data.pickle_names import with_numpy_1_names
from drivefine_agent.data.safe_pickle import load_pickle, load_pickle_bytes
from drivefine_agent.errors import DataError, UnsafePickleError

VALUES = {
    "float array": np.arange(6.0).reshape(2, 3),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "big-endian": np.array([1.5, -2.0], dtype=">f8"),
    "ints": np.array([1, 0, 0, 0]),
    "bools": np.array([True, False]),
    "texts": np.array(["vehicle", "pedestrian"]),
    "empty": np.zeros((0, 7)),
    "objects": np.array(["a", None, 3], dtype=object),
    "scalar": np.float64(1.25),
    "small scalar": np.int16(-3),
    "text scalar": np.str_("left"),
    "nested": [{"a": (np.arange(3), "x")}, b"\x00\xff", None, 2**70, 1.5, (), True],
}


def assert_same(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, np.ndarray):
        assert actual.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")  # numpy swaps when it reads
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same(actual[key], expected[key])
    else:
        assert actual == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_builtins_and_numpy_come_back_as_they_were(value, protocol):
    assert_same(load_pickle_bytes(pickle.dumps(value, protocol), "here"), value)


# protocols 0 and 1 would write sets by calling object's own reconstructor
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [{1, 2}, frozenset({"k"}), [set()]], ids=["set", "frozenset", "empty"])
def test_sets_come_back_as_they_were(value, protocol):
    assert_same(load_pickle_bytes(pickle.dumps(value, protocol), "here"), value)


def test_names_of_numpy_1_are_read_too():
    content = with_numpy_1_names(pickle.dumps([np.arange(3.0), np.float32(2)], 3))
    assert b"numpy._core" not in content
    assert_same(load_pickle_bytes(content, "here"), [np.arange(3.0), np.float32(2)])


class Attack:
    """Its pickle runs a command when an ordinary unpickler reads it."""

    def __init__(self, function, *args):
        self._reduced = (function, args)

    def __reduce__(self):
        return self._reduced


@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, ("touch {marker}",), "system"),
        (subprocess.check_output, (["touch", "{marker}"],), "subprocess.check_output"),
        (eval, ("open('{marker}', 'w')",), "builtins.eval"),
        (getattr, (1, "real"), "builtins.getattr"),
        (np.load, ("{marker}",), "numpy.load"),
    ],
    ids=["os.system", "subprocess", "eval", "getattr", "numpy.load"],
)
def test_a_pickle_that_wants_to_run_code_is_refused_by_name_and_runs_nothing(tmp_path, function, args, name):
    marker = tmp_path / "was_executed"
    path = tmp_path / "evil.pkl"
    args = json.loads(json.dumps(args).replace("{marker}", str(marker)))
    path.write_bytes(pickle.dumps([{"token": "ok"}, Attack(function, *args)]))
    with pytest.raises(UnsafePickleError, match=name) as error:
        load_pickle(path)
    assert "evil.pkl" in str(error.value)
    assert not marker.exists()


def global_(module, name):
    return f"c{module}\n{name}\n".encode()


def dumped(value):
    """The opcodes that build a builtin value, without header and stop."""
    return pickle.dumps(value, 2)[2:-1]


DTYPE = global_("numpy", "dtype") + dumped(("f8", False, True)) + b"R"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            global_("numpy", "ndarray") + dumped(((1 << 40,),)) + b"R", id="calling ndarray with a huge shape"
        ),
        pytest.param(
            global_("numpy.core.multiarray", "_reconstruct")
            + b"("
            + global_("numpy", "ndarray")
            + dumped((1 << 40,))
            + dumped(b"b")
            + b"tR",
            id="huge shape in _reconstruct",
        ),
        pytest.param(DTYPE + b"Nb", id="dtype state None"),
        pytest.param(
            DTYPE + dumped((3, "<", None, None, None, 1 << 30, 8, 0)) + b"b", id="dtype of another size"
        ),
        pytest.param(global_("numpy", "dtype") + dumped(("V999999999",)) + b"R", id="dtype of raw bytes"),
        pytest.param(
            global_("numpy.core.multiarray", "scalar") + b"(" + DTYPE + dumped(b"1") + b"tR",
            id="scalar too short",
        ),
        pytest.param(
            global_("numpy", "dtype") + dumped({"__call__": 1}) + b"b", id="setting a function's state"
        ),
        pytest.param(global_("builtins", "set"), id="a class as data"),
        pytest.param(global_("_codecs", "encode") + dumped(("x", "rot13")) + b"R", id="another codec"),
    ],
)
def test_the_allowed_names_cannot_be_misused(body):
    with pytest.raises(UnsafePickleError, match="crafted"):
        load_pickle_bytes(b"\x80\x02" + body + b".", "crafted.pkl")


def test_a_crafted_flag_cannot_turn_numbers_into_pointers():
    object_flags = DTYPE + dumped((3, "<", None, None, None, -1, -1, 63)) + b"b"
    body = global_("numpy.core.multiarray", "scalar") + b"(" + object_flags + dumped(b"\x00" * 8) + b"tR"
    value = load_pickle_bytes(b"\x80\x02" + body + b".", "here")
    assert value == 0.0
    assert not value.dtype.hasobject


@pytest.mark.parametrize(
    "kept", [0, 1, 10, 0.5, -1], ids=["empty", "1 byte", "10 bytes", "half", "all but one byte"]
)
def test_a_truncated_pickle_names_the_file(tmp_path, kept):
    content = pickle.dumps([{"token": "a", "x": np.arange(100.0)}])
    count = (
        int(len(content) * kept) if isinstance(kept, float) else kept if kept >= 0 else len(content) + kept
    )
    path = tmp_path / "cut.pkl"
    path.write_bytes(content[:count])
    with pytest.raises(DataError, match=r"not a complete pickle .*cut\.pkl"):
        load_pickle(path)


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04zip", b"\x89PNG\r\n", b"hello\n", b"\x80\x63", b"\x8d" + b"\xff" * 8 + b"x."],
    ids=range(5),
)
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "foreign.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"foreign\.pkl"):
        load_pickle(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the pickle .*absent\.pkl"):
        load_pickle(tmp_path / "absent.pkl")


def test_a_file_above_the_limit_is_not_read(tmp_path):
    path = tmp_path / "big.pkl"
    path.write_bytes(pickle.dumps([0] * 1000))
    with pytest.raises(DataError, match="at most 10 bytes"):
        load_pickle(path, max_bytes=10)


def test_data_nested_too_deep_are_refused():
    value = []
    for _ in range(200):
        value = [value]
    with pytest.raises(DataError, match="nested"):
        load_pickle_bytes(pickle.dumps(value), "deep.pkl")


def test_a_list_that_holds_itself_ends():
    value = []
    value.append(value)
    loaded = load_pickle_bytes(pickle.dumps(value), "here")
    assert loaded[0] is loaded


def test_nested_tuples_that_share_their_parts_are_visited_once_and_counted_as_often_as_they_occur() -> None:
    """Sixty doublings in two hundred bytes: unshared, 2^60 items."""

    def doublings(count: int) -> bytes:
        levels = [b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(count)]
        return b"\x80\x03K\x01\x85q\x00" + b"".join(levels) + b"."

    value = load_pickle_bytes(doublings(12), "doublings")
    for _ in range(12):
        assert value[0] is value[1]
        value = value[0]
    assert value == (1,)
    with pytest.raises(UnsafePickleError, match=r"at most \d+ items for its size.*doublings"):
        load_pickle_bytes(doublings(60), "doublings")
