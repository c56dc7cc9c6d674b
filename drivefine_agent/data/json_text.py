"""JSON from files that nobody vouches for: doubled keys, deep nesting, huge numbers are one clear error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drivefine_agent.errors import DataError

MAX_JSON_BYTES = 256 * 1024**2
"""Files above this are refused before they are read."""

_MAX_NESTING = 100
_MAX_DIGITS = 300  # as a float, more may be too large
_AGAIN = "write or fetch it again"


def parse_json(text: bytes | str, where: str) -> Any:
    """The value of a JSON text. NaN and Infinity are taken as Python writes them.

    Args:
      text: in UTF-8 where it is bytes.
      where: file, or file and line, for messages.

    Raises:
      DataError: it is no JSON, is nested deeper than 100, has a key twice in one object, or an integer of
        more digits than the largest float has.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError as error:
        raise DataError(_too_deep(where)) from error
    except ValueError as error:  # of JSON, of UTF-8, or of `_object`
        raise DataError(f"expected JSON in UTF-8, got something else ({error}): {where}; {_AGAIN}") from error
    if text.count("[") + text.count("{") > _MAX_NESTING and _is_deep(value):
        raise DataError(_too_deep(where))
    return value


def read_json(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file; see `parse_json`.

    Raises:
      DataError: also if the file is missing, cannot be read, or is larger than `max_bytes`.
    """
    return parse_json(read_text(path, max_bytes), str(path))


def read_json_object(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file; see `read_json`.

    Raises:
      DataError: also if it is a list, a number or a text.
    """
    return _as_object(read_json(path, max_bytes), str(path))


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number from 1, and the object of each line of a JSON-lines file.

    Raises:
      DataError: naming file and line.
    """
    for number, line in enumerate(read_text(path, MAX_JSON_BYTES).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield number, _as_object(parse_json(line, where), where)


def read_text(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """The text of a file in UTF-8.

    Raises:
      DataError: it is missing, larger than `max_bytes`, or not in UTF-8.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise DataError(
                f"a text file may have {max_bytes} bytes, got {size}: {path}; is it another file?"
            )
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"expected text in UTF-8, got other bytes ({error}): {path}; {_AGAIN}") from error


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"expected a JSON object, got {type(value).__name__}: {where}; {_AGAIN}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {double[:80]!r} occurs twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer may have {_MAX_DIGITS} digits, got {len(digits)}")
    return int(digits)


def _too_deep(where: str) -> str:
    return f"JSON may be nested {_MAX_NESTING} deep, got more: {where}; {_AGAIN}"


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_NESTING + 1):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
    return bool(level)
