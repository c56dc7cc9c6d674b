"""A pack: one memory-mapped file of scenes, with what they share, and an index that needs no parsing.

    header | scenes | tables | meta (JSON)

The tables are plain arrays: the index (tokens sorted, with place, size, checksum and fingerprint of each
scene) and the roads that scenes share (cache_roads). The meta text lists the tables, and names of logs and
maps. A pack is written under a temporary name, flushed to disk and renamed, so a file with its final name is
complete. Header, meta, tables and every scene carry checksums. Numbers are little-endian.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.data.atomic import atomic_file
from drivefine_agent.data.json_text import parse_json
from drivefine_agent.errors import DataError
from drivefine_agent.scoring.cache_layout import (
    NUM_SAMPLES,
    Remapping,
    SharedReader,
    SharedWriter,
    log_and_time,
    pack_scene,
    rules_of,
    unpack_scene,
)
from drivefine_agent.scoring.cache_roads import RoadReader
from drivefine_agent.scoring.types import ScoringScene

VERSION = 3
_MAGIC = b"DFSCENES"
_HEADER = struct.Struct("<8sII QQQ II")  # _Header, the checksum of the meta text, that of these bytes
_HEADER_SIZE = 64
_ALIGNMENT = 8
_NO_FINGERPRINT = -1
_INDEX = {"token": "|S", "offset": "<i8", "size": "<i8", "crc": "<u4", "fingerprint": "<i8"}
_PIECES = {"lengths": "<i4", "block_vertices": "<i4", "block_offsets": "<i8", "blocks": "|u1"}
_POLYGONS = {"kind": "|i1", "ids": "|u1", "part_offsets": "<i4", "ring_offsets": "<i4", "pieces": "<i4"}
_TABLES = {
    f"{prefix}.{name}": dtype
    for prefix, columns in {
        "index": _INDEX,
        "roads.polygons": _POLYGONS,
        "roads.lines": _PIECES,
        "roads.paths": _PIECES,
    }.items()
    for name, dtype in columns.items()
}
"""Type of each table; |S with the width of the longest token."""
_MAX_TOKEN_BYTES = 1000
_REBUILD = (
    "run tools/build_scene_cache.py again for the splits of this cache, which prepares the damaged and"
    " missing scenes again (all of a file whose head or tables are damaged)"
)


class DamagedPackError(DataError):
    """A pack of ours is empty, truncated or altered; it can be removed and built again."""


class Meta(NamedTuple):
    """What the text at the end of a pack says."""

    rules: str
    names: tuple[str, ...]
    tables: Mapping[str, tuple[str, int, int, int | None]]
    """By name: type, length, place in the file, checksum."""


class _Header(NamedTuple):
    magic: bytes
    version: int
    num_scenes: int
    meta_offset: int
    meta_size: int
    file_size: int
    meta_crc: int

    def pack(self) -> bytes:
        body = _HEADER.pack(*self, 0)[:-4]
        return (body + struct.pack("<I", zlib.crc32(body))).ljust(_HEADER_SIZE, b"\0")


class PackWriter:
    """Writes scenes as they come; a context manager. The pack appears when it is left without an error."""

    def __init__(self, path: Path, rules: str) -> None:
        self._rules = rules
        self._manager = atomic_file(path)
        self._shared = SharedWriter()
        self._index: list[tuple[bytes, int, int, int, int]] = []  # token, place, size, checksum, fingerprint

    def __enter__(self) -> PackWriter:
        self._file = self._manager.__enter__()
        self._file.write(bytes(_HEADER_SIZE))
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error_type is None:
                self._finish()
        # Whatever ends the last writes, an interrupt too, must remove the temporary file; it is raised again.
        except BaseException:
            self._manager.__exit__(*sys.exc_info())
            raise
        self._manager.__exit__(error_type, error, trace)

    def __len__(self) -> int:
        return len(self._index)

    def add(self, scene: ScoringScene, fingerprint: int | None = None) -> None:
        """Take in one scene.

        Args:
          scene: the scene, of the pack's rules.
          fingerprint: of what it was prepared from, so that a later build can tell whether it is up to date.

        Raises:
          ValueError: if the scene has no box poses (`track_poses`), as scenes made by hand, or other rules.
        """
        if rules_of(scene) != self._rules:
            raise ValueError(
                f"all scenes of a cache must be of the same rules, got '{rules_of(scene)}' for one of"
                f" '{self._rules}'"
            )
        self._append(scene.token, pack_scene(scene, self._shared), fingerprint)

    def mover(self, pack: Pack) -> Callable[[str], None]:
        """A function that takes in a scene of another pack by its token, in its compact form."""
        remapping = Remapping(pack.shared, self._shared)

        def move(token: str) -> None:
            with pack.reading(token):
                moved = remapping.moved(pack.blob(token))
            self._append(token, moved, pack.fingerprint(token))

        return move

    def _append(self, token: str, blob: bytes, fingerprint: int | None) -> None:
        number = _NO_FINGERPRINT if fingerprint is None else fingerprint
        self._index.append((token.encode(), self._file.tell(), len(blob), zlib.crc32(blob), number))
        self._file.write(blob)

    def _finish(self) -> None:
        tables = {
            **{f"index.{name}": array for name, array in self._index_arrays().items()},
            **{f"roads.{name}": array for name, array in self._shared.roads.arrays().items()},
        }
        listed = {}
        for name, array in tables.items():
            self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
            data = array.tobytes()
            crc = None if name.endswith(".blocks") else zlib.crc32(data)  # deflated blocks have their own
            listed[name] = [array.dtype.str, list(array.shape), self._file.tell(), crc]
            self._file.write(data)
        meta = json.dumps(
            {"rules": self._rules, "tables": listed, "names": self._shared.names.list()}
        ).encode()
        start = self._file.tell()
        self._file.write(meta)
        header = _Header(
            _MAGIC, VERSION, len(self._index), start, len(meta), start + len(meta), zlib.crc32(meta)
        )
        self._file.seek(0)
        self._file.write(header.pack())

    def _index_arrays(self) -> dict[str, NDArray[Any]]:
        width = max((len(row[0]) for row in self._index), default=1)
        columns = [(name, f"|S{width}" if name == "token" else dtype) for name, dtype in _INDEX.items()]
        rows = np.array(sorted(self._index), dtype=columns)
        return {name: np.ascontiguousarray(rows[name]) for name, _ in columns}


class Pack:
    """A file of scenes, memory-mapped. Opening it reads index and tables, but no scenes and no vertices.

    A checksum that fits proves nothing: places, sizes and numbers are checked against what is there.

    Raises:
      DataError: if the file is missing, foreign, of another version, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._buffer: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
        except FileNotFoundError as error:
            raise DataError(f"a file of the scene cache is missing: {path}; {_REBUILD}") from error
        except ValueError as error:  # numpy cannot map an empty file
            raise DamagedPackError(f"a file of the scene cache is empty: {path}; {_REBUILD}") from error
        meta = _meta(parse_json(self._meta_bytes(), str(path)), path)
        self.rules = meta.rules
        with self._checked():
            tables = {name: self._table(name, *place) for name, place in meta.tables.items()}
            self._tokens, self._offset, self._size, self._crc, self._fingerprint = (
                tables[f"index.{name}"] for name in _INDEX
            )
            self._check_index()
            roads = {
                name.removeprefix("roads."): array
                for name, array in tables.items()
                if name.startswith("roads.")
            }
            self.shared = SharedReader(meta.names, RoadReader(roads))

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and self._row(token) is not None

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of the scenes, in the order of writing."""
        return tuple(token.decode() for token in self._tokens[np.argsort(self._offset)].tolist())

    @property
    def fingerprints(self) -> Mapping[str, int | None]:
        """By token, of what scenes were prepared from; see `fingerprint`."""
        numbers = [None if number == _NO_FINGERPRINT else number for number in self._fingerprint.tolist()]
        return {token.decode(): n for token, n in zip(self._tokens.tolist(), numbers, strict=True)}

    def log_and_time(self, token: str) -> tuple[str, int]:
        """Name of the log of a scene, and its time stamp [us].

        Raises:
          DataError: if the scene's bytes are damaged.
        """
        with self.reading(token):
            return log_and_time(self.blob(token), self.shared)

    def fingerprint(self, token: str) -> int | None:
        """Of what a scene was prepared from; None if it was not told.

        Raises:
          KeyError: if the token is not in the pack.
        """
        number = int(self._fingerprint[self._known_row(token)])
        return None if number == _NO_FINGERPRINT else number

    def load(self, token: str) -> ScoringScene:
        """Load one scene. Threads may share a pack.

        Raises:
          KeyError: if the token is not in the pack.
          DataError: if the scene's bytes are damaged.
        """
        with self.reading(token):
            return unpack_scene(token, self.blob(token), self.rules, self.shared)

    @contextmanager
    def reading(self, token: str) -> Iterator[None]:
        """Around what decodes a scene's bytes: a ValueError becomes a DamagedPackError."""
        try:
            yield
        except DamagedPackError:
            raise
        except ValueError as error:  # the scene's checksum is right: roads are damaged, or it is forged
            raise DamagedPackError(
                f"scene '{token}' in the scene cache is damaged ({error}): {self.path}; {_REBUILD}"
            ) from error

    def blob(self, token: str) -> NDArray[np.uint8]:
        """A scene in its compact form; see `load`."""
        row = self._known_row(token)
        offset, size = int(self._offset[row]), int(self._size[row])
        blob = self._buffer[offset : offset + size]
        if zlib.crc32(blob.data) != self._crc[row]:
            raise DamagedPackError(
                f"scene '{token}' in the scene cache is damaged (wrong checksum): {self.path}; {_REBUILD}"
            )
        return blob

    def damaged(self) -> dict[str, str]:
        """Scenes with a wrong checksum, with the reason; reads the whole file, but decodes no scene.

        Raises:
          DamagedPackError: if roads, which scenes share, are damaged.
        """
        with self._checked():
            self.shared.roads.lines.check()
            self.shared.roads.paths.check()
        reasons = {}
        for token in self.tokens:
            try:
                self.blob(token)
            except DamagedPackError as error:
                reasons[token] = str(error)
        return reasons

    def _row(self, token: str) -> int | None:
        key = np.bytes_(token.encode())
        row = int(np.searchsorted(self._tokens, key))
        return row if row < len(self._tokens) and self._tokens[row] == key else None

    def _known_row(self, token: str) -> int:
        row = self._row(token)
        if row is None:
            raise KeyError(f"a token must be one of the cache's, got '{token}': {self.path}")
        return row

    def _meta_bytes(self) -> bytes:
        path, raw = self.path, bytes(self._buffer[:_HEADER_SIZE])
        if raw[: len(_MAGIC)] != _MAGIC:
            raise DataError(
                f"this is not a file of a scene cache: {path}; give the folder of a cache of ours"
            )
        if len(raw) < _HEADER_SIZE:
            raise DamagedPackError(
                f"a file of the scene cache is truncated in its header: {path}; {_REBUILD}"
            )
        (version,) = struct.unpack_from("<I", raw, len(_MAGIC))
        if version == 1:
            raise DataError(outdated_message(f"version {version}", path))
        *fields, checksum = _HEADER.unpack_from(raw)
        if checksum != zlib.crc32(raw[: _HEADER.size - 4]):
            raise DamagedPackError(
                f"a file of the scene cache has a damaged header (wrong checksum): {path}; {_REBUILD}"
            )
        header = _Header(*fields)
        if header.version != VERSION:
            raise DataError(outdated_message(f"version {header.version}", path))
        if header.file_size != len(self._buffer):
            raise DamagedPackError(
                f"a file of the scene cache is damaged: expected {header.file_size} bytes, got"
                f" {len(self._buffer)}: {path}; {_REBUILD}"
            )
        meta = bytes(self._buffer[header.meta_offset : header.meta_offset + header.meta_size])
        if zlib.crc32(meta) != header.meta_crc:
            raise DamagedPackError(
                f"a file of the scene cache is damaged (wrong checksum): {path}; {_REBUILD}"
            )
        return meta

    def _table(self, name: str, dtype: str, length: int, offset: int, crc: int | None) -> NDArray[Any]:
        num_bytes = length * np.dtype(dtype).itemsize
        if not 0 <= offset <= offset + num_bytes <= len(self._buffer):
            raise ValueError(f"table {name} must lie in the file, got {num_bytes} bytes from {offset} on")
        data = self._buffer[offset : offset + num_bytes]
        if crc is None and not name.endswith(".blocks"):
            raise ValueError(f"table {name} must have a checksum, got none")
        if crc is not None and zlib.crc32(data.data) != crc:
            raise ValueError(f"table {name} must have its own checksum, got a wrong checksum")
        table: NDArray[Any] = np.ndarray((length,), dtype, self._buffer, offset)
        return table

    def _check_index(self) -> None:
        if len({len(a) for a in (self._tokens, self._offset, self._size, self._crc, self._fingerprint)}) != 1:
            raise ValueError("columns of the index must have one length, got several")
        if not (self._tokens[1:] > self._tokens[:-1]).all():
            raise ValueError("tokens of the index must rise, got others")
        b"\n".join(self._tokens.tolist()).decode()  # a UnicodeDecodeError is a ValueError
        offset, size, end = self._offset, self._size, len(self._buffer)
        if not ((0 <= offset) & (offset <= end) & (0 <= size) & (size <= end - offset)).all():
            raise ValueError("scenes of the index must lie in the file, got others")

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """Around what reads tables: a ValueError becomes a DamagedPackError."""
        try:
            yield
        except ValueError as error:
            raise DamagedPackError(
                f"a file of the scene cache is damaged ({error}): {self.path}; {_REBUILD}"
            ) from error


def _meta(value: Any, path: Path) -> Meta:
    """The meta text of a pack, checked.

    Raises:
      DataError: if it is not that of a pack.
    """
    rules = value.get("rules") if isinstance(value, dict) else None
    if not isinstance(rules, str) or rules not in NUM_SAMPLES:
        raise DataError(
            f"a scene cache has rules {sorted(NUM_SAMPLES)}, got {str(rules)[:50]!r}: {path}; {_REBUILD}"
        )
    names, tables = value.get("names"), value.get("tables")
    is_good = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_good or not isinstance(tables, dict) or tables.keys() != _TABLES.keys():
        raise DamagedPackError(
            f"a file of the scene cache must list names and the tables {list(_TABLES)}, this one does not:"
            f" {path}; {_REBUILD}"
        )
    places = {}
    for name, place in tables.items():
        match place:
            case [str(dtype), [int(length)], int(offset), int() | None as crc] if (
                _is_type(dtype, _TABLES[name]) and length >= 0
            ):
                places[name] = (dtype, length, offset, crc)
            case _:
                raise DamagedPackError(
                    f"table {name} of a file of the scene cache must be listed with type {_TABLES[name]},"
                    f" length, place and checksum, got {str(place)[:100]}: {path}; {_REBUILD}"
                )
    return Meta(rules, tuple(names), places)


def _is_type(dtype: str, expected: str) -> bool:
    if expected != "|S":
        return dtype == expected
    width = dtype.removeprefix("|S")
    return width.isascii() and width.isdigit() and len(width) < 5 and 1 <= int(width) <= _MAX_TOKEN_BYTES


def outdated_message(found: str, path: Path) -> str:
    """What to do with a cache of another version."""
    return (
        f"the scene cache has {found}, this program reads version {VERSION}: {path}; build the cache again"
        " into another folder (tools/build_scene_cache.py)"
    )


assert sys.byteorder == "little", "scene caches are read without byte swapping"
assert _HEADER.size <= _HEADER_SIZE
