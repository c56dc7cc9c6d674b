"""A split -> the two YAML files by which NAVSIM knows it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.scenes import SceneFilter
from drivefine_agent.data.splits import Split, StageGroup
from drivefine_agent.errors import DataError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def write_split(splits_root: str | Path, split: Split) -> Path:
    """Write `train_test_split/<name>.yaml` and `train_test_split/scene_filter/<name>.yaml` below a folder.

    NAVSIM finds them with `hydra.searchpath=[file://<splits_root>]`. Keys that only NAVSIM 2 knows are
    written where they say something, so that a plain split suits NAVSIM 1.1 too. Every token is quoted:
    some consist of digits only.

    Returns:
      Path of the split's file.

    Raises:
      DataError: a name that cannot be a file's, or names with quotation marks or line breaks.
    """
    if not _NAME.fullmatch(split.name):
        raise DataError(
            f"a split's name must consist of letters, digits, '_' and '-', got {split.name!r}"
            "; choose such a name"
        )
    folder = Path(splits_root) / "train_test_split"
    lines = ["defaults:", f"  - scene_filter: {split.name}", f"data_split: {_quoted(split.data_split)}"]
    if split.reactive_all_mapping is not None:
        lines += ["reactive_all_mapping:", *_group_lines(split.reactive_all_mapping)]
    write_bytes(folder / "scene_filter" / f"{split.name}.yaml", _text(_filter_lines(split.scene_filter)))
    path = folder / f"{split.name}.yaml"
    write_bytes(path, _text(lines))
    return path


def _filter_lines(scene_filter: SceneFilter) -> list[str]:
    lines = [
        "_target_: navsim.common.dataclasses.SceneFilter",
        "_convert_: 'all'",
        f"num_history_frames: {scene_filter.num_history_frames}",
        f"num_future_frames: {scene_filter.num_future_frames}",
        f"frame_interval: {_or_null(scene_filter.frame_interval)}",
        f"has_route: {str(scene_filter.has_route).lower()}",
        f"max_scenes: {_or_null(scene_filter.max_scenes)}",
        *_list_lines("log_names", scene_filter.log_names),
        *_list_lines("tokens", scene_filter.tokens),
    ]
    if scene_filter.include_synthetic_scenes:
        lines.append("include_synthetic_scenes: true")
    for key in (
        "synthetic_scene_tokens",
        "reactive_synthetic_initial_tokens",
        "non_reactive_synthetic_initial_tokens",
    ):
        if getattr(scene_filter, key) is not None:
            lines += _list_lines(key, getattr(scene_filter, key))
    return lines


def _group_lines(groups: Iterable[StageGroup]) -> list[str]:
    lines = []
    for group in groups:
        pairs = ", ".join(f"[{_quoted(now)}, {_quoted(previous)}]" for now, previous in group.pairs)
        lines.append(f"  - [{_quoted(group.token)}, {_quoted(group.previous_token)}, [{pairs}]]")
    return lines or ["  []"]


def _list_lines(key: str, values: Iterable[str] | None) -> list[str]:
    if values is None:
        return [f"{key}: null"]
    items = [f"  - {_quoted(value)}" for value in values]
    return [f"{key}:", *items] if items else [f"{key}: []"]


def _quoted(value: str) -> str:
    if "'" in value or "\n" in value or "$" in value:
        raise DataError(
            f"a log_name or token of a split must not hold quotation marks, '$' or line breaks, got {value!r}"
            "; rename it"
        )
    return f"'{value}'"


def _or_null(value: int | None) -> str:
    return "null" if value is None else str(value)


def _text(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()
