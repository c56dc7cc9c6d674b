"""Map lines and polygons that the scenes of a cache share, each stored once.

A line (a ring of a polygon, a centreline, the path of a vehicle) is cut into *pieces*. Where it is cut
depends on its vertices alone, so that lines which follow the same road, from wherever, have pieces in common.
A polygon is a row of a table: kind, map id, and the pieces of its rings. Scenes hold the numbers of pieces
and polygons.

Pieces are compressed in blocks; a reader inflates a block when a piece of it is needed first, and keeps it.
Readers take no number on trust, whatever the checksums say: those that lead out of a table are a ValueError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.scoring.cache_codec import (
    Guess,
    Part,
    check_deflated,
    check_numbers,
    decode_floats,
    deflate,
    encode_floats,
    inflate,
)
from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray, PolygonKind

Arrays = dict[str, NDArray[Any]]
Rows = NDArray[np.int32]

_BLOCK_VERTICES = 4096
_CUT_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], dtype=np.uint64)
_CUT_BITS = 5  # one vertex in 32 ends a piece
_MAX_TAKEN = 2**22  # vertices of a scene; the largest have some 10,000
_KINDS = [int(kind) for kind in PolygonKind]


class Polygons(NamedTuple):
    """Polygons of a scene, as in `ScoringScene`."""

    xy: FloatArray
    ring_offsets: NDArray[np.int64]
    part_offsets: NDArray[np.int64]
    kind: NDArray[np.int64]
    ids: tuple[str, ...]


def _offsets(lengths: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def check_offsets(offsets: NDArray[Any], num_slices: int | None, size: int, what: str) -> None:
    """Whether offsets cut `size` things into slices (`num_slices`, if told).

    Raises:
      ValueError: if not.
    """
    is_good = len(offsets) >= 1 and num_slices in (None, len(offsets) - 1)
    if not (is_good and offsets[0] == 0 and offsets[-1] == size and (offsets[1:] >= offsets[:-1]).all()):
        raise ValueError(f"{what} must cut {size} into slices one after the other, they do not")


def check_rows(rows: NDArray[Any], count: int, what: str) -> None:
    """Whether all are numbers of rows of a table.

    Raises:
      ValueError: if not.
    """
    if not _are_rows(rows, count):
        raise ValueError(f"numbers of {what} must be in 0 ... {count - 1}, got {rows.min()} ... {rows.max()}")


@njit(cache=True, nogil=True)
def _are_rows(rows, count):
    """Whether all are in 0 ... count - 1."""
    for row in rows:
        if row < 0 or row >= count:
            return False
    return True


class PieceWriter:
    """Collects the pieces of lines with `width` numbers per vertex."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._rows: dict[bytes, int] = {}
        self._lengths: list[int] = []
        self._blocks: list[bytes] = []
        self._block_vertices: list[int] = []
        self._open: list[FloatArray] = []  # pieces of the block that is not full yet
        self._num_open = 0

    def add_line(self, vertices: FloatArray) -> Rows:
        """Numbers of the pieces of a line (n, width)."""
        vertices = np.ascontiguousarray(vertices, dtype=np.float64)
        mixed = (vertices[:, :2].copy().view(np.uint64) * _CUT_MULTIPLIERS).sum(axis=1, dtype=np.uint64)
        ends = np.flatnonzero((mixed >> np.uint64(64 - _CUT_BITS)) == 0) + 1
        stops = np.unique(np.append(ends, len(vertices)))
        starts = np.concatenate([[0], stops[:-1]])
        pieces = [vertices[start:stop] for start, stop in zip(starts, stops, strict=True) if stop > start]
        return np.array([self.add_piece(piece) for piece in pieces], dtype=np.int32)

    def add_piece(self, piece: FloatArray) -> int:
        """Number of a piece, which is taken in if it is new."""
        row = self._rows.setdefault(
            hashlib.blake2b(piece.tobytes(), digest_size=16).digest(), len(self._rows)
        )
        if row == len(self._lengths):
            self._lengths.append(len(piece))
            self._open.append(piece.copy())
            self._num_open += len(piece)
            if self._num_open >= _BLOCK_VERTICES:
                self._close_block()
        return row

    def _close_block(self) -> None:
        vertices = np.concatenate(self._open)
        parts = [Part(len(piece), self._width, Guess.LINE) for piece in self._open]
        self._blocks.append(deflate(encode_floats(self._open, parts)))
        self._block_vertices.append(len(vertices))
        self._open, self._num_open = [], 0

    def arrays(self) -> Arrays:
        """All pieces as arrays; see `PieceReader`."""
        if self._open:
            self._close_block()
        return {
            "lengths": np.array(self._lengths, dtype=np.int32),
            "block_vertices": np.array(self._block_vertices, dtype=np.int32),
            "block_offsets": _offsets([len(block) for block in self._blocks]),
            "blocks": np.frombuffer(b"".join(self._blocks), dtype=np.uint8),
        }


class PieceReader:
    """The pieces that a PieceWriter collected. Threads may share one.

    Raises:
      ValueError: if the arrays do not fit together.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], width: int) -> None:
        self._check(arrays, width)
        self._width = width
        self._blocks = arrays["blocks"]
        self._block_offsets = arrays["block_offsets"]
        self._lengths = arrays["lengths"]
        self._starts = kernel_input(_offsets(self._lengths), np.int64)
        self._first_of_block = _offsets(arrays["block_vertices"])
        # Pages of this array cost memory only once a block is inflated into them.
        self._vertices = np.empty((int(self._starts[-1]), width))
        self._is_inflated = np.zeros(len(arrays["block_vertices"]), dtype=bool)

    @staticmethod
    def _check(arrays: Mapping[str, NDArray[Any]], width: int) -> None:
        lengths, blocks = arrays["lengths"], arrays["block_vertices"]
        if min(lengths.min(initial=1), blocks.min(initial=1)) < 1:
            raise ValueError("pieces of lines and their blocks must have at least 1 vertex, got one without")
        starts, first_of_block = _offsets(lengths), _offsets(blocks)
        check_offsets(
            arrays["block_offsets"], len(blocks), len(arrays["blocks"]), "offsets of blocks of lines"
        )
        check_deflated(len(arrays["blocks"]), 8 * width * int(starts[-1]))
        if starts[-1] != first_of_block[-1] or not np.isin(first_of_block, starts, assume_unique=True).all():
            raise ValueError("blocks of lines must hold whole pieces, and all of them, got others")

    def line(self, rows: Rows) -> FloatArray:
        """(n, width) vertices of pieces, one after the other."""
        return self.lines(rows)[0]

    def lines(self, rows: Rows) -> tuple[FloatArray, NDArray[np.int64]]:
        """Vertices of pieces, and (len(rows) + 1,) where each starts and ends."""
        rows = kernel_input(rows, np.int32)
        check_rows(rows, len(self._lengths), "pieces")
        needed = np.searchsorted(self._first_of_block, self._starts[rows], side="right") - 1
        for block in np.unique(needed[~self._is_inflated[needed]]):
            self._inflate(int(block))
        return _take(self._vertices, self._starts, rows)

    def check(self) -> None:
        """Look at the checksums of all blocks; raises ValueError if one is damaged."""
        for block in range(len(self._block_offsets) - 1):
            self._inflated(block)

    def _inflate(self, block: int) -> None:
        first, last = self._first_of_block[block : block + 2]
        pieces = slice(*np.searchsorted(self._starts, [first, last]))
        parts = [Part(int(length), self._width, Guess.LINE) for length in self._lengths[pieces]]
        vertices = np.concatenate(decode_floats(self._inflated(block), parts))
        check_numbers(vertices, "vertices")
        self._vertices[first:last] = vertices
        self._is_inflated[block] = True  # last, so that no other thread reads what is not there yet

    def _inflated(self, block: int) -> NDArray[np.uint8]:
        first, last = self._first_of_block[block : block + 2]
        start, stop = self._block_offsets[block : block + 2]
        return inflate(self._blocks[start:stop], 8 * self._width * int(last - first))


@njit(cache=True, nogil=True)
def _take(vertices, starts, rows):
    """Copies of the pieces `rows`, one after the other, and where each of them starts and ends."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    for index, row in enumerate(rows):
        offsets[index + 1] = offsets[index] + starts[row + 1] - starts[row]
    if offsets[-1] > _MAX_TAKEN:
        raise ValueError("a scene may have 4 million vertices, got more")
    taken = np.empty((offsets[-1], vertices.shape[1]))
    for index, row in enumerate(rows):
        at = offsets[index]
        for source in range(starts[row], starts[row + 1]):
            for column in range(vertices.shape[1]):
                taken[at, column] = vertices[source, column]
            at += 1
    return taken, offsets


class PolygonWriter:
    """Collects polygons, whose rings go to a PieceWriter."""

    def __init__(self, pieces: PieceWriter) -> None:
        self._pieces = pieces
        self._rows: dict[tuple[int, str, bytes], int] = {}
        self._rings: list[list[Rows]] = []

    def add(self, polygons: Polygons) -> Rows:
        """Numbers (M,) of polygons, which are taken in where they are new."""
        ids = polygons.ids or ("",) * len(polygons.kind)
        rows = np.empty(len(polygons.kind), dtype=np.int32)
        for index, (id_, kind) in enumerate(zip(ids, polygons.kind, strict=True)):
            first, last = polygons.part_offsets[index : index + 2]
            limits = polygons.ring_offsets[first : last + 1]
            content = polygons.xy[limits[0] : limits[-1]].tobytes() + (limits - limits[0]).tobytes()
            key = (int(kind), id_, hashlib.blake2b(content, digest_size=16).digest())
            row = rows[index] = self._rows.setdefault(key, len(self._rows))
            if row == len(self._rings):
                rings = [polygons.xy[start:stop] for start, stop in pairwise(limits)]
                self._rings.append([self._pieces.add_line(ring) for ring in rings])
        return rows

    def arrays(self) -> Arrays:
        """All polygons as arrays; see `PolygonReader`."""
        rings = [ring for polygon in self._rings for ring in polygon]
        return {
            "kind": np.array([kind for kind, _, _ in self._rows], dtype=np.int8),
            "ids": np.frombuffer("\n".join(id_ for _, id_, _ in self._rows).encode(), dtype=np.uint8),
            "part_offsets": _offsets([len(polygon) for polygon in self._rings]).astype(np.int32),
            "ring_offsets": _offsets([len(ring) for ring in rings]).astype(np.int32),
            "pieces": np.concatenate([np.zeros(0, dtype=np.int32), *rings]),
        }


class PolygonReader:
    """The polygons that a PolygonWriter collected.

    Raises:
      ValueError: if the arrays do not fit together.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], pieces: PieceReader) -> None:
        self._piece_reader = pieces
        self._kind = arrays["kind"]
        self._part_offsets = kernel_input(arrays["part_offsets"], np.int32)
        self._ring_offsets = kernel_input(arrays["ring_offsets"], np.int32)
        self._pieces = kernel_input(arrays["pieces"], np.int32)
        self._ids = arrays["ids"].tobytes()
        self._id_list: NDArray[np.object_] | None = None
        check_offsets(self._part_offsets, len(self._kind), len(self._ring_offsets) - 1, "slices of rings")
        check_offsets(self._ring_offsets, None, len(self._pieces), "slices of pieces")
        if not np.isin(self._kind, _KINDS).all():
            raise ValueError(f"kinds of polygons must be in {_KINDS}, got another")

    def take(self, rows: Rows) -> Polygons:
        """The polygons of the numbers (M,)."""
        check_rows(rows, len(self._kind), "polygons")
        pieces, ring_pieces, part_offsets = _pieces_of(
            self._part_offsets, self._ring_offsets, self._pieces, kernel_input(rows, np.int32)
        )
        xy, starts = self._piece_reader.lines(pieces)
        ring_offsets = starts[ring_pieces]
        if not _are_rings(xy, ring_offsets):
            raise ValueError(
                "rings of polygons must be closed and have at least 4 vertices, got one that is not"
            )
        if self._id_list is None:
            ids = self._ids.decode().split("\n")
            if len(ids) != max(len(self._kind), 1):
                raise ValueError(f"{len(self._kind)} polygons need as many ids, got {len(ids)}")
            self._id_list = np.array(ids, dtype=object)
        return Polygons(
            xy,
            ring_offsets,
            part_offsets,
            self._kind[rows].astype(np.int64),
            tuple(self._id_list[rows]),
        )


@njit(cache=True, nogil=True)
def _pieces_of(part_offsets, ring_offsets, pieces, rows):
    """Pieces of the polygons `rows`; (R + 1,) where each ring starts among them; (M + 1,) slices of rings."""
    num_rings, num_pieces = 0, 0
    for row in rows:
        first, last = part_offsets[row], part_offsets[row + 1]
        num_rings += last - first
        num_pieces += ring_offsets[last] - ring_offsets[first]
    if num_rings > _MAX_TAKEN or num_pieces > _MAX_TAKEN:
        raise ValueError("a scene may have 4 million rings and pieces, got more")
    taken = np.empty(num_pieces, dtype=np.int32)
    ring_starts = np.zeros(num_rings + 1, dtype=np.int64)
    parts = np.zeros(len(rows) + 1, dtype=np.int64)
    piece, ring = 0, 0
    for index, row in enumerate(rows):
        for source_ring in range(part_offsets[row], part_offsets[row + 1]):
            for source in range(ring_offsets[source_ring], ring_offsets[source_ring + 1]):
                taken[piece] = pieces[source]
                piece += 1
            ring += 1
            ring_starts[ring] = piece
        parts[index + 1] = ring
    return taken, ring_starts, parts


@njit(cache=True, nogil=True)
def _are_rings(xy, offsets):
    """Whether all slices of vertices end where they begin, after at least three others."""
    for ring in range(len(offsets) - 1):
        first, last = offsets[ring], offsets[ring + 1] - 1
        if last < first + 3 or xy[first, 0] != xy[last, 0] or xy[first, 1] != xy[last, 1]:
            return False
    return True


class RoadWriter:
    """All tables of roads of a pack."""

    def __init__(self) -> None:
        self.lines = PieceWriter(2)
        self.paths = PieceWriter(4)
        self.polygons = PolygonWriter(self.lines)

    def arrays(self) -> Arrays:
        """All tables, by table and name."""
        tables = {
            "polygons": self.polygons.arrays(),  # before the lines, which it adds to
            "lines": self.lines.arrays(),
            "paths": self.paths.arrays(),
        }
        return {f"{table}.{name}": a for table, arrays in tables.items() for name, a in arrays.items()}


class RoadReader:
    """The tables that a RoadWriter wrote.

    Raises:
      ValueError: if they do not fit together.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        def table(prefix: str) -> Arrays:
            start = f"{prefix}."
            return {name[len(start) :]: a for name, a in arrays.items() if name.startswith(start)}

        self.lines = PieceReader(table("lines"), 2)
        """Rings and centrelines: x, y."""
        self.paths = PieceReader(table("paths"), 4)
        """Paths of vehicles: x, y, heading, progress."""
        self.polygons = PolygonReader(table("polygons"), self.lines)
