"""The scene cache: scenes ready to be scored, in a few memory-mapped files without pickles.

A cache is a folder with a manifest and *shards*. A shard holds a few hundred scenes and a table of the map
polygons they share, so that a scene stores indices instead of vertices; boxes are stored as poses and sizes,
and their corners are computed on loading by the function that computed them on building. What comes out is
bit for bit what went in.

    manifest.json          format, version, shards with their tokens, scenes that could not be prepared
    scenes-00000.shard     header | scene blobs | polygon table | index (JSON)

Every file is written under a temporary name, flushed to disk and renamed, so a file with its final name is
complete. Header, index, polygon table and every scene carry checksums. Numbers are little-endian.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.errors import DataError
from drivefine_agent.scoring.cache_layout import (
    NUM_SAMPLES,
    RULES_V1,
    Fields,
    pack_arrays,
    pack_scene,
    padded,
    polygon_views,
    rules_of,
    scene_fields,
    unpack_arrays,
    unpack_scene,
)
from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray, ScoringScene

FORMAT = "drivefine-scene-cache"
VERSION = 1
MANIFEST_NAME = "manifest.json"
SHARD_PATTERN = "scenes-*.shard"
SCENES_PER_SHARD = 256

_MAGIC = b"DFSCENES"
_HEADER = struct.Struct("<8sII QQ QQ Q II")  # see _ShardHeader; followed by the checksum of these bytes
_HEADER_SIZE = 72
_REBUILD = "delete the file and run tools/build_scene_cache.py again, which rebuilds only what is missing"


class DamagedShardError(DataError):
    """A shard of ours is empty, truncated or altered; it can be removed and built again."""


@dataclass(frozen=True)
class _ShardHeader:
    version: int
    num_scenes: int
    polygons_offset: int
    polygons_size: int
    index_offset: int
    index_size: int
    file_size: int
    polygons_crc: int
    index_crc: int

    def pack(self) -> bytes:
        body = _HEADER.pack(
            _MAGIC,
            self.version,
            self.num_scenes,
            self.polygons_offset,
            self.polygons_size,
            self.index_offset,
            self.index_size,
            self.file_size,
            self.polygons_crc,
            self.index_crc,
        )
        return (body + struct.pack("<I", zlib.crc32(body))).ljust(_HEADER_SIZE, b"\0")


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"scenes-{number:05d}.shard"


class _PolygonTable:
    """Map polygons shared by the scenes of a shard, each stored once."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, str, bytes], int] = {}
        self._xy: list[FloatArray] = []
        self._rings: list[NDArray[np.int64]] = []

    def rows(self, scene: ScoringScene) -> NDArray[np.int32]:
        """Table rows (M,) of a scene's polygons, which are added where they are new."""
        ids = scene.polygon_ids or ("",) * len(scene.polygon_kind)
        rows = np.empty(len(scene.polygon_kind), dtype=np.int32)
        for index, (id_, kind) in enumerate(zip(ids, scene.polygon_kind, strict=True)):
            first, last = scene.polygon_part_offsets[index : index + 2]
            rings = scene.polygon_ring_offsets[first : last + 1]
            xy = np.ascontiguousarray(scene.polygon_xy[rings[0] : rings[-1]])
            key = (int(kind), id_, (rings - rings[0]).tobytes() + xy.tobytes())
            row = self._rows.setdefault(key, len(self._rows))
            if row == len(self._xy):
                self._xy.append(xy)
                self._rings.append(np.diff(rings))
            rows[index] = row
        return rows

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The table as arrays; see _polygon_fields."""
        return {
            "xy": np.concatenate([np.zeros((0, 2)), *self._xy]),
            "ring_offsets": _offsets(np.concatenate([np.zeros(0, dtype=np.int64), *self._rings])),
            "part_offsets": _offsets(np.array([len(rings) for rings in self._rings], dtype=np.int64)),
            "kind": np.array([kind for kind, _, _ in self._rows], dtype=np.int64),
        }

    def ids(self) -> list[str]:
        """Map ids in table order."""
        return [id_ for _, id_, _ in self._rows]


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


class ShardWriter:
    """Collects scenes in memory, in their compact form, and writes them as one shard."""

    def __init__(self) -> None:
        self._blobs: list[bytes] = []
        self._entries: list[dict[str, Any]] = []
        self._polygons = _PolygonTable()
        self.rules = RULES_V1

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def tokens(self) -> list[str]:
        """Tokens of the scenes collected so far."""
        return [entry["token"] for entry in self._entries]

    def add(self, scene: ScoringScene, fingerprint: int | None = None) -> None:
        """Take in one scene.

        Args:
          scene: the scene; all scenes of a shard are of the same rules.
          fingerprint: of what it was prepared from, so that a later build can tell whether it is up to date.

        Raises:
          ValueError: if the scene has no box poses (`track_poses`), as scenes made by hand, or other rules
            than those before it.
        """
        if self._entries and rules_of(scene) != self.rules:
            raise ValueError(
                f"all scenes of a cache must be of the same rules, got '{rules_of(scene)}' after"
                f" '{self.rules}'"
            )
        self.rules = rules_of(scene)
        blob, layout = pack_scene(scene, self._polygons.rows(scene))
        self._blobs.append(blob)
        self._entries.append(
            {
                "token": scene.token,
                "log_name": scene.log_name,
                "map_name": scene.map_name,
                "timestamp_us": int(scene.timestamp_us),
                "fingerprint": fingerprint,
                "crc": zlib.crc32(blob),
                **layout,
            }
        )

    def write(self, path: Path) -> None:
        """Write the shard; the file appears under its name only when it is complete and on disk."""
        parts: list[bytes] = [b"\0" * _HEADER_SIZE]
        position = _HEADER_SIZE
        for entry, blob in zip(self._entries, self._blobs, strict=True):
            entry["offset"], entry["size"] = position, len(blob)
            parts.append(padded(blob))
            position += len(parts[-1])
        table = self._polygons.arrays()
        table_counts = [len(table["xy"]), len(table["ring_offsets"]) - 1, len(table["part_offsets"]) - 1]
        polygons = padded(pack_arrays(table, _polygon_fields(*table_counts)))
        index = json.dumps(
            {
                "rules": self.rules,
                "scenes": self._entries,
                "polygon_counts": table_counts,
                "polygon_ids": self._polygons.ids(),
            }
        ).encode()
        header = _ShardHeader(
            version=VERSION,
            num_scenes=len(self._entries),
            polygons_offset=position,
            polygons_size=len(polygons),
            index_offset=position + len(polygons),
            index_size=len(index),
            file_size=position + len(polygons) + len(index),
            polygons_crc=zlib.crc32(polygons),
            index_crc=zlib.crc32(index),
        )
        parts[0] = header.pack()
        write_atomically(path, [*parts, polygons, index])


def _polygon_fields(num_vertices: int, num_rings: int, num_polygons: int) -> Fields:
    return [
        ("xy", "<f8", (num_vertices, 2)),
        ("ring_offsets", "<i8", (num_rings + 1,)),
        ("part_offsets", "<i8", (num_polygons + 1,)),
        ("kind", "<i8", (num_polygons,)),
    ]


def write_atomically(path: Path, parts: list[bytes]) -> None:
    """Write a file so that it is either complete under its name or absent: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    # Whatever ends the write, an interrupt too, must leave no half file behind; it is raised again.
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Shard:
    """One file of scenes, memory-mapped.

    Raises:
      DataError: if the file is missing, foreign, of another version, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._buffer: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
        except FileNotFoundError as error:
            raise DataError(f"a shard of the scene cache is missing: {path}; {_REBUILD}") from error
        except ValueError as error:  # numpy cannot map an empty file
            raise DamagedShardError(f"a shard of the scene cache is empty: {path}; {_REBUILD}") from error
        header = _read_header(self._buffer, path)
        index_bytes = self._section(header.index_offset, header.index_size)
        polygons = self._section(header.polygons_offset, header.polygons_size)
        if _checksum(index_bytes) != header.index_crc or _checksum(polygons) != header.polygons_crc:
            raise DamagedShardError(
                f"a shard of the scene cache is damaged (wrong checksum): {path}; {_REBUILD}"
            )
        index = json.loads(bytes(index_bytes))
        self.rules: str = index["rules"]
        if self.rules not in NUM_SAMPLES:
            raise DataError(f"a scene cache has rules {sorted(NUM_SAMPLES)}, got '{self.rules}': {path}")
        self._entries = {entry["token"]: entry for entry in index["scenes"]}
        self._polygon_ids = np.array(index["polygon_ids"], dtype=object)
        table = unpack_arrays(polygons, _polygon_fields(*index["polygon_counts"]))
        self._table = {name: kernel_input(array, array.dtype) for name, array in table.items()}

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of the scenes in the shard, in the order of writing."""
        return tuple(self._entries)

    def fingerprint(self, token: str) -> int | None:
        """Of what a scene was prepared from; None if it was not told."""
        return self._entries[token]["fingerprint"]

    def load(self, token: str) -> ScoringScene:
        """Load one scene.

        Raises:
          KeyError: if the token is not in the shard.
          DataError: if the scene's bytes are damaged.
        """
        entry = self._entries[token]
        blob = self._section(entry["offset"], entry["size"])
        if _checksum(blob) != entry["crc"]:
            raise DamagedShardError(
                f"scene '{token}' in the scene cache is damaged (wrong checksum): {self.path}; {_REBUILD}"
            )
        fields = scene_fields(self.rules, *entry["counts"])
        rows = unpack_arrays(blob, fields)["polygon_rows"]
        taken = _take_polygons(
            self._table["xy"],
            self._table["ring_offsets"],
            self._table["part_offsets"],
            kernel_input(rows, np.int32),
        )
        polygons = polygon_views(self._table, self._polygon_ids, rows, taken)
        return unpack_scene(blob, self.rules, entry, polygons)

    def _section(self, offset: int, size: int) -> NDArray[np.uint8]:
        return self._buffer[offset : offset + size]


def _checksum(section: NDArray[np.uint8]) -> int:
    return zlib.crc32(section.data)


def _read_header(buffer: NDArray[np.uint8], path: Path) -> _ShardHeader:
    raw = bytes(buffer[:_HEADER_SIZE])
    if raw[: len(_MAGIC)] != _MAGIC:
        raise DataError(f"this is not a shard of a scene cache: {path}; give the folder of a cache of ours")
    if len(raw) < _HEADER_SIZE:
        raise DamagedShardError(f"a shard of the scene cache is truncated in its header: {path}; {_REBUILD}")
    (checksum,) = struct.unpack_from("<I", raw, _HEADER.size)
    if checksum != zlib.crc32(raw[: _HEADER.size]):
        raise DamagedShardError(
            f"a shard of the scene cache has a damaged header (wrong checksum): {path}; {_REBUILD}"
        )
    header = _ShardHeader(*_HEADER.unpack_from(raw)[1:])
    if header.version != VERSION:
        raise DataError(
            f"the scene cache has version {header.version}, this program reads version {VERSION}: {path};"
            " build the cache again into another folder"
        )
    if header.file_size != len(buffer):
        raise DamagedShardError(
            f"a shard of the scene cache is damaged: expected {header.file_size} bytes, got {len(buffer)}:"
            f" {path}; {_REBUILD}"
        )
    return header


@njit(cache=True, nogil=True)
def _take_polygons(xy, ring_offsets, part_offsets, rows):
    """Vertices, ring offsets and part offsets of the polygons `rows` (M,) of a table."""
    num_rings, num_vertices = 0, 0
    for row in rows:
        num_rings += part_offsets[row + 1] - part_offsets[row]
        num_vertices += ring_offsets[part_offsets[row + 1]] - ring_offsets[part_offsets[row]]
    taken_xy = np.empty((num_vertices, 2))
    taken_rings = np.zeros(num_rings + 1, dtype=np.int64)
    taken_parts = np.zeros(len(rows) + 1, dtype=np.int64)
    ring, vertex = 0, 0
    for index, row in enumerate(rows):
        for source_ring in range(part_offsets[row], part_offsets[row + 1]):
            for source in range(ring_offsets[source_ring], ring_offsets[source_ring + 1]):
                taken_xy[vertex, 0] = xy[source, 0]
                taken_xy[vertex, 1] = xy[source, 1]
                vertex += 1
            ring += 1
            taken_rings[ring] = vertex
        taken_parts[index + 1] = ring
    return taken_xy, taken_rings, taken_parts


class SceneCache(Mapping[str, ScoringScene]):
    """Read access to a cache folder by scene token; shards are opened when first needed.

    Objects can be pickled and sent to other processes, which open the files for themselves. Scenes of the
    rules `navsim_v2` are `ScoringSceneV2`.

    Raises:
      DataError: if the folder is no scene cache, or its manifest is damaged, of another version, or of other
        rules than asked for.
    """

    def __init__(self, folder: str | Path, rules: str = RULES_V1) -> None:
        self.folder = Path(folder)
        self.rules = rules
        manifest = read_manifest(self.folder, rules)
        self._shard_of: dict[str, str] = {
            token: shard["file"] for shard in manifest["shards"] for token in shard["tokens"]
        }
        self._failures: dict[str, str] = manifest["failures"]
        self._shards: dict[str, Shard] = {}

    def __getitem__(self, token: str) -> ScoringScene:
        """The scene of a token.

        Raises:
          KeyError: if the cache does not have it; the message says so, and why if preparing the scene failed.
          DataError: if the file it lies in is missing or damaged.
        """
        if token not in self._shard_of:
            reason = self._failures.get(token)
            raise KeyError(
                f"scene '{token}' is not in the scene cache {self.folder}: "
                + (
                    f"it could not be prepared: {reason}"
                    if reason
                    else "build the cache for a split that has it"
                )
            )
        return self._shard_with(token).load(token)

    def fingerprint(self, token: str) -> int | None:
        """Of what a scene of the cache was prepared from; None if it was not told.

        Raises:
          KeyError: if the cache does not have the scene.
          DataError: if the file it lies in is missing or damaged.
        """
        return self._shard_with(token).fingerprint(token)

    def _shard_with(self, token: str) -> Shard:
        name = self._shard_of[token]
        if name not in self._shards:
            shard = Shard(self.folder / name)
            missing = [t for t, file in self._shard_of.items() if file == name and t not in shard.tokens]
            if missing:
                raise DataError(
                    f"shard and manifest of a scene cache must agree, but scene '{missing[0]}' is missing in"
                    f" {self.folder / name}: run tools/build_scene_cache.py again"
                )
            self._shards[name] = shard
        return self._shards[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def __len__(self) -> int:
        return len(self._shard_of)

    def __contains__(self, token: object) -> bool:
        return token in self._shard_of

    def __reduce__(self) -> tuple[type[SceneCache], tuple[Path, str]]:
        return type(self), (self.folder, self.rules)

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens, in the order of building."""
        return tuple(self._shard_of)

    @property
    def failures(self) -> Mapping[str, str]:
        """Scenes that could not be prepared, with the reason."""
        return self._failures


def read_manifest(folder: Path, rules: str | None = RULES_V1) -> dict[str, Any]:
    """The manifest of a cache folder with scenes of the given rules; None takes any.

    Raises:
      DataError: if it is missing, damaged, foreign, of another version or of other rules.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        state = (
            "its building was interrupted" if any(folder.glob(SHARD_PATTERN)) else "it holds no scene cache"
        )
        raise DataError(
            f"a scene cache needs the file {path}, which does not exist ({state}): run"
            f" tools/build_scene_cache.py metric_cache_path={folder}"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"the manifest of the scene cache is damaged: {path}; delete it and run"
            " tools/build_scene_cache.py again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(
            f"this is not the manifest of a scene cache: {path}; give the folder of a cache of ours"
        )
    if manifest.get("version") != VERSION or rules not in (manifest.get("rules"), None):
        found = f"version {manifest.get('version')} and rules '{manifest.get('rules')}'"
        raise DataError(
            f"the scene cache has {found}, but version {VERSION} and rules '{rules}' are needed: {path};"
            " build the cache again into another folder"
        )
    return manifest


def write_manifest(folder: Path, failures: Mapping[str, str], rules: str = RULES_V1) -> dict[str, Any]:
    """Finish a cache: check every shard and list its scenes.

    Where a token occurs twice, the newest shard counts. Shards without a scene that counts are removed.

    Raises:
      DataError: if a shard is damaged, foreign or of other rules.
    """
    listed: set[str] = set()
    shards: list[dict[str, Any]] = []
    outdated: list[Path] = []
    for path in sorted(folder.glob(SHARD_PATTERN), reverse=True):
        shard = Shard(path)
        if shard.rules != rules:
            raise DataError(f"a scene cache of rules '{rules}' holds a shard of '{shard.rules}': {path}")
        tokens = [token for token in shard.tokens if token not in listed]
        listed.update(tokens)
        if tokens:
            shards.insert(0, {"file": path.name, "tokens": tokens})
        else:
            outdated.append(path)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "rules": rules,
        "shards": shards,
        "failures": {token: reason for token, reason in failures.items() if token not in listed},
    }
    write_atomically(folder / MANIFEST_NAME, [json.dumps(manifest, indent=1).encode()])
    for path in outdated:  # only now: until here the old manifest may name them
        path.unlink()
    return manifest


class SceneCacheWriter:
    """Builds a cache in one process; scenes that the folder already has stay.

    Use as a context manager: leaving it without an exception writes the last shard and the manifest.
    """

    def __init__(
        self, folder: str | Path, scenes_per_shard: int = SCENES_PER_SHARD, rules: str = RULES_V1
    ) -> None:
        self.folder = Path(folder)
        self.rules = rules
        self.folder.mkdir(parents=True, exist_ok=True)
        self._scenes_per_shard = scenes_per_shard
        self._number = next_shard_number(self.folder)
        self._shard = ShardWriter()
        self._failures: dict[str, str] = {}

    def __enter__(self) -> SceneCacheWriter:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error_type is None:
            self.close()

    def add(self, scene: ScoringScene) -> None:
        """Take in one scene; every full shard is written at once."""
        self._shard.add(scene)
        if len(self._shard) >= self._scenes_per_shard:
            self._flush()

    def add_failure(self, token: str, reason: str) -> None:
        """Note that a scene could not be prepared."""
        self._failures[token] = reason

    def close(self) -> None:
        """Write the last shard and the manifest."""
        if len(self._shard):
            self._flush()
        write_manifest(self.folder, self._failures, self.rules)

    def _flush(self) -> None:
        self._shard.write(self.folder / shard_name(self._number))
        self._number += 1
        self._shard = ShardWriter()


def next_shard_number(folder: Path) -> int:
    """The first number after those of the shards in a folder."""
    return max((int(path.stem.split("-")[1]) + 1 for path in folder.glob(SHARD_PATTERN)), default=0)


assert sys.byteorder == "little", "scene caches are read without byte swapping"
assert _HEADER.size + 4 <= _HEADER_SIZE
