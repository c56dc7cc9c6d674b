"""Finding the files of a folder of official metric caches.

NAVSIM lists them in `metadata/*.csv` with the paths of the machine and folder it ran in, which are wrong
after a move, and reads only the first list. Here all lists are read, and a path counts by its last parts.

Source: navsim-formats 4.1.
"""

from __future__ import annotations

import csv
from pathlib import Path

from drivefine_agent.errors import DataError

FILE_NAME = "metric_cache.pkl"


def list_metric_caches(folder: str | Path) -> dict[str, Path]:
    """The caches of a folder: token -> `<folder>/<log>/<scenario type>/<token>/metric_cache.pkl`.

    With lists in `metadata/`, these say which caches belong to the folder and in which order; without, all
    files found do, sorted by path.

    Raises:
      DataError: if the folder is missing or holds no caches, a listed file is missing, or a token occurs
        twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"a folder of NAVSIM's metric caches is needed, got {folder}, which is no folder"
            ": give the folder that run_metric_caching.py wrote"
        )
    lists = sorted((folder / "metadata").glob("*.csv"))
    if lists:
        paths = [_locate(folder, line, source) for source in lists for line in listed_files(source)]
    else:
        paths = sorted(folder.glob(f"*/*/*/{FILE_NAME}"))
    if not paths:
        raise DataError(
            f"a folder of NAVSIM's metric caches has files <log>/unknown/<token>/{FILE_NAME}, {folder} has"
            " none: give the folder that run_metric_caching.py wrote"
        )
    found: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        token = path.parent.name
        if token in found:
            raise DataError(
                f"a token may have one metric cache, '{token}' has two: {found[token]} and {path}"
                "; remove one of the two"
            )
        found[token] = path
    return found


def listed_files(source: Path) -> list[str]:
    """The paths in one of the lists `metadata/*.csv`, as they stand there.

    Raises:
      DataError: it cannot be read, or is no such list.
    """
    try:
        with source.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"cannot read the list of metric caches {source}: {error}"
            "; write it again, or remove it to use the files that are there"
        ) from error
    if not rows or rows[0][0] != "file_name":
        raise DataError(
            f"a list of metric caches starts with the header 'file_name': {source}"
            "; write it again, or remove it to use the files that are there"
        )
    return [row[0] for row in rows[1:]]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system takes
        return False


def _locate(folder: Path, line: str, source: Path) -> Path:
    """The file a line means, wherever the folder was when the line was written."""
    parts = Path(line).parts[-4:]
    if len(parts) != 4 or parts[-1] != FILE_NAME or {"..", "/"} & set(parts):
        raise DataError(
            f"a line in a list of metric caches ends in log/type/token/{FILE_NAME}, got {line!r}: {source}"
            "; write the list again, or remove it to use the files that are there"
        )
    path = folder.joinpath(*parts)
    if not _is_file(path):
        raise DataError(
            f"the list {source} names a metric cache that is missing: {path}; copy it too, or remove the list"
            " to use the files that are there"
        )
    return path
