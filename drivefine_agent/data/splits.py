"""NAVSIM's split YAMLs: which folder of logs, which samples, which pairs of stages.

A split `<name>` is `train_test_split/<name>.yaml`, which names a
`train_test_split/scene_filter/<filter>.yaml`. They are read here without Hydra and with every scalar taken
as text, so that a token of digits stays a token whether or not it was quoted.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from drivefine_agent.data.scenes import SceneFilter
from drivefine_agent.errors import DataError

# Every scalar stays text; the C loader is ten times faster on navtrain's 100,000 tokens.
_TextLoader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

_NULL = ("", "~", "null", "none")
_TRUE = ("true", "yes", "on")
_FALSE = ("false", "no", "off")

# Keys of a split file: read, or known and without meaning here.
_SPLIT_KEYS = ("defaults", "data_split", "reactive_all_mapping", "scene_filter")
_IGNORED_SPLIT_KEYS = ("two_stage_mapping",)
_IGNORED_FILTER_KEYS = ("_target_", "_convert_", "_recursive_", "all_mapping", "defaults")


@dataclass(frozen=True)
class StageGroup:
    """A pair of first-stage samples and the second-stage samples that follow them (NAVSIM 2)."""

    token: str
    """First-stage sample, t0."""
    previous_token: str
    """First-stage sample half a second earlier."""
    pairs: tuple[tuple[str, str], ...]
    """(second-stage sample that starts at t0 + 4 s, the one that starts half a second earlier)."""


@dataclass(frozen=True)
class Split:
    """What a split file says."""

    name: str
    data_split: str
    """Folder below `navsim_logs/` and `sensor_blobs/`."""
    scene_filter: SceneFilter
    reactive_all_mapping: tuple[StageGroup, ...] | None = None


def load_split(name_or_path: str | Path, search_dirs: Iterable[str | Path] = ()) -> Split:
    """A split by its name, looked for in `search_dirs` in order, or by the path of its YAML file.

    Args:
      name_or_path: e.g. `navtest`, or a path that ends in `.yaml`.
      search_dirs: folders that hold `train_test_split/`, or are it. NAVSIM's own is
        `navsim/planning/script/config/common`.

    Raises:
      DataError: no such split (with the known ones), or its files are damaged or hold unknown keys.
    """
    path = _split_path(name_or_path, [Path(folder) for folder in search_dirs])
    content = _mapping(path)
    unknown = [key for key in content if key not in _SPLIT_KEYS + _IGNORED_SPLIT_KEYS]
    if unknown:
        raise DataError(
            f"a split file has the keys {list(_SPLIT_KEYS)}, got {unknown} in {path}; remove the others"
        )
    return Split(
        name=path.stem,
        data_split=_data_split(content, path),
        scene_filter=_scene_filter(content, path),
        reactive_all_mapping=_stage_groups(content.get("reactive_all_mapping"), path),
    )


def known_splits(search_dirs: Iterable[str | Path]) -> list[str]:
    """Names of all splits in the given folders, sorted."""
    return sorted({path.stem for path in split_files(search_dirs)})


def split_files(search_dirs: Iterable[str | Path]) -> list[Path]:
    """The YAML files of all splits in the given folders, in their order and by name."""
    return [path for folder in search_dirs for path in _split_files(Path(folder))]


def data_split_of(path: Path) -> str:
    """The folder of logs that a split's file names; its scene filter, which may be long, is not read.

    Raises:
      DataError: the file is damaged, or names none.
    """
    return _data_split(_mapping(path), path)


def load_log_lists(path: Path) -> dict[str, tuple[str, ...]]:
    """NAVSIM's lists of logs: `train_logs` and `val_logs` of default_train_val_test_log_split.yaml.

    Raises:
      DataError: the file is missing or damaged, or the lists overlap.
    """
    content = _mapping(path)
    lists = {key: _names(key, content.get(key), path) or () for key in ("train_logs", "val_logs")}
    both = sorted(set(lists["train_logs"]) & set(lists["val_logs"]))
    if both:
        raise DataError(
            f"train_logs and val_logs must not overlap, got {both[0]!r} in both lists of {path}"
            "; remove it from one of them"
        )
    return lists


def _data_split(content: Mapping[str, Any], path: Path) -> str:
    folder = content.get("data_split")
    if not isinstance(folder, str) or not folder:
        raise DataError(
            f"a split file needs 'data_split', got none in {path}; add it: the folder below navsim_logs"
        )
    return folder


def _split_path(name_or_path: str | Path, search_dirs: list[Path]) -> Path:
    name = str(name_or_path)
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise DataError(f"no split file at {path}: correct the path, or give the name of a split")
        return path
    for folder in search_dirs:
        for path in _split_files(folder):
            if path.stem == name:
                return path
    known = known_splits(search_dirs)
    close = difflib.get_close_matches(name, known, n=1)
    folders = ", ".join(str(folder) for folder in search_dirs) or "no folder at all"
    raise DataError(
        f"unknown split {name!r}: {folders} hold{'s' if len(search_dirs) == 1 else ''} {known or 'none'}"
        + (f"; did you mean {close[0]!r}?" if close else "; give the path of its YAML file or add its folder")
    )


def _split_files(folder: Path) -> list[Path]:
    inner = folder / "train_test_split"
    return sorted((inner if inner.is_dir() else folder).glob("*.yaml"))


def _scene_filter(content: Mapping[str, Any], path: Path) -> SceneFilter:
    """The filter that the split's defaults name, with what the split itself sets on top."""
    name, own, defaults = None, content.get("scene_filter") or {}, content.get("defaults") or []
    if not isinstance(own, dict) or not isinstance(defaults, list):
        raise DataError(
            "a split file needs a list as 'defaults' and a mapping as 'scene_filter', got "
            f"{type(defaults).__name__} and {type(own).__name__} in {path}; correct it"
        )
    for entry in defaults:
        if isinstance(entry, dict) and "scene_filter" in entry:
            name = entry["scene_filter"]
    if name is None and not own:
        raise DataError(
            f"a split file needs a scene filter, got none in {path}; add `defaults: - scene_filter: <name>`"
        )
    values: dict[str, Any] = {}
    filter_path = path
    if name is not None:
        filter_path = path.parent / "scene_filter" / f"{name}.yaml"
        if not os.path.isfile(filter_path):  # False too for a name that no file can have
            raise DataError(
                f"the split {path.stem!r} names the scene filter {str(name)[:100]!r}, but there is no "
                f"{filter_path}: add that file, or correct the name"
            )
        values = _mapping(filter_path)
    values = {**values, **own}

    readers: dict[str, Callable[[str, Any, Path], Any]] = {
        "num_history_frames": _integer,
        "num_future_frames": _integer,
        "frame_interval": _optional_integer,
        "has_route": _boolean,
        "max_scenes": _optional_integer,
        "log_names": _names,
        "tokens": _names,
        "include_synthetic_scenes": _boolean,
        "synthetic_scene_tokens": _names,
        "reactive_synthetic_initial_tokens": _names,
        "non_reactive_synthetic_initial_tokens": _names,
    }
    unknown = [key for key in values if key not in readers and key not in _IGNORED_FILTER_KEYS]
    if unknown:
        close = difflib.get_close_matches(unknown[0], list(readers), n=1)
        raise DataError(
            f"a scene filter has the keys {sorted(readers)}, got {unknown} in {filter_path}; remove them"
            + (f", or did you mean {close[0]!r}?" if close else "")
        )
    checked = {key: readers[key](key, value, filter_path) for key, value in values.items() if key in readers}
    try:
        return SceneFilter(**checked)
    except DataError as error:
        raise DataError(f"{error}, in {filter_path}; correct the file") from error


def _stage_groups(value: Any, path: Path) -> tuple[StageGroup, ...] | None:
    if _is_null(value):
        return None
    groups = []
    for index, group in enumerate(value if isinstance(value, list) else [None]):
        if not (
            isinstance(group, list)
            and len(group) == 3
            and isinstance(group[0], str)
            and isinstance(group[1], str)
            and isinstance(group[2], list)
            and all(
                isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in group[2]
            )
        ):
            raise DataError(
                f"a group of 'reactive_all_mapping' must be [token, previous token, list of pairs], "
                f"group {index} in {path} is not"
                ": correct it"
            )
        groups.append(StageGroup(group[0], group[1], tuple((now, previous) for now, previous in group[2])))
    return tuple(groups)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(
            path.read_text(encoding="utf-8"), Loader=_TextLoader
        )  # a loader that builds text only
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"not a YAML file: {path}: {error}; correct it") from error
    if not isinstance(content, dict):
        raise DataError(
            f"expected a YAML file of keys and values, got {type(content).__name__}: {path}; correct it"
        )
    return content


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.lower() in _NULL)


def _integer(key: str, value: Any, path: Path) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{key!r} must be an integer, got {value!r} in {path}; correct it") from error


def _optional_integer(key: str, value: Any, path: Path) -> int | None:
    return None if _is_null(value) else _integer(key, value, path)


def _boolean(key: str, value: Any, path: Path) -> bool:
    if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise DataError(f"{key!r} must be true or false, got {value!r} in {path}; correct it")


def _names(key: str, value: Any, path: Path) -> tuple[str, ...] | None:
    if _is_null(value):
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DataError(f"{key!r} must be a list of names or null, got {value!r:.80} in {path}; correct it")
    return tuple(value)
