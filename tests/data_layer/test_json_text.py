import json
from pathlib import Path

import pytest

from drivefine_agent.data.json_text import parse_json, read_json, read_json_lines, read_json_object
from drivefine_agent.errors import DataError


def test_what_python_writes_is_read() -> None:
    value = {"a": [1, 2.5, None, True, "é", {"b": []}], "c": float("inf")}
    assert parse_json(json.dumps(value), "here") == value
    assert parse_json(json.dumps(value).encode(), "here") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected JSON in UTF-8"),
        (b'{"a": 1', "expected JSON in UTF-8"),
        (b"\xff\xfe", "expected text in UTF-8"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' occurs twice"),
        (b"9" * 5000, "an integer may have 300 digits, got 5000"),
        (b"[1, -" + b"9" * 400 + b"]", "an integer may have 300 digits, got 401"),
        (b"[" * 200 + b"]" * 200, "nested 100 deep"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nested 100 deep"),
        (b"[" * 100_000 + b"]" * 100_000, "nested 100 deep"),
    ],
    ids=[
        "empty",
        "cut",
        "bytes",
        "key twice",
        "digits",
        "a float's digits",
        "deep lists",
        "deep objects",
        "very deep",
    ],
)
def test_damaged_json_is_one_error_that_names_the_file(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.json"
    path.write_bytes(text)
    with pytest.raises(DataError, match=rf"{message}.*damaged\.json; write or fetch it again"):
        read_json(path)


def test_files_are_named_when_missing_too_large_or_no_object(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"cannot read .*a\.json"):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(DataError, match=r"expected a JSON object, got list: .*a\.json"):
        read_json_object(path)
    with pytest.raises(DataError, match=r"may have 2 bytes, got 3: .*a\.json"):
        read_json(path, max_bytes=2)


def test_lines_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert list(read_json_lines(path)) == [(1, {"a": 1}), (3, {"a": 2})]
    path.write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2"):
        list(read_json_lines(path))
