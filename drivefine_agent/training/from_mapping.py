"""Nested mappings, as of YAML, to frozen dataclasses; a mistyped key or type is an error that names it."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """An instance of a dataclass from a mapping; absent keys keep their defaults.

    Args:
      cls: dataclass whose fields are int, float, bool, str, literals, tuples of these, mappings, None or such
        dataclasses.
      values: by field name.
      where: path of this mapping inside the whole, for messages.

    Raises:
      ValueError: an unknown or missing key, or a value of the wrong type.
    """
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown key {where + key!r}: choose among {sorted(known)}{hint}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where + name!r} must be given")
    return cls(**{name: _convert(hints[name], value, where + name) for name, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _convert(next(option for option in options if option is not type(None)), value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where!r} must be a group of settings, got {value!r}")
        return from_mapping(hint, value, where + ".")
    if origin is Literal:
        if value not in options:
            raise ValueError(f"{where!r} must be one of {', '.join(map(str, options))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"{where!r} must be a list, got {value!r}")
        inner = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        if len(inner) != len(value):
            raise ValueError(f"{where!r} must have {len(inner)} entries, got {value!r}")
        return tuple(
            _convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True))
        )
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where!r} must be a mapping, got {value!r}")
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) is not (hint is bool) or not isinstance(value, hint):
        raise ValueError(f"{where!r} must be {hint.__name__}, got {value!r}")
    return value
