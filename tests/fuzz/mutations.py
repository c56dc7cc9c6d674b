"""Damaged copies of real files: of their bytes, and of what these mean (JSON, pickles, SQLite, packs, ...).

All of it draws from a `random.Random`, so that a seed or hypothesis decides, and a finding can be made again.
"""

from __future__ import annotations

import io
import json
import lzma
import pickle
import pickletools
import re
import sqlite3
import struct
import zlib
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drivefine_agent.scoring.cache_pack import _HEADER, _HEADER_SIZE

NUMBERS = (0, 1, -1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
TEXTS = (
    "",
    "\0",
    "..",
    "/",
    "../../etc/passwd",
    "nan",
    "inf",
    "-1",
    "1e999",
    "x" * 5000,
    "\ud7ff",
    "é",
    "null",
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**40, 1e308, -0.5, float("nan"), float("inf")),
    *TEXTS,
    *([], {}, [[]], {"": None}, [None] * 50, "9" * 5000),
)


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """One to four changes that know nothing of the format."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        random.choice(_BYTE_CHANGES)(data, random)
    return bytes(data)


def _flip(data: bytearray, random: Random) -> None:
    for _ in range(random.choice((1, 2, 8))):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _truncate(data: bytearray, random: Random) -> None:
    del data[random.randrange(len(data) + 1) :]


def _delete(data: bytearray, random: Random) -> None:
    start = random.randrange(len(data) + 1)
    del data[start : start + random.choice((1, 2, 4, 8, 64, 1000))]


def _insert(data: bytearray, random: Random) -> None:
    start = random.randrange(len(data) + 1)
    data[start:start] = random.randbytes(random.choice((1, 2, 4, 8, 64)))


def _splice(data: bytearray, random: Random) -> None:
    start, source = random.randrange(len(data) + 1), random.randrange(len(data) + 1)
    size = random.choice((1, 4, 16, 256, 4096))
    data[start : start + size] = data[source : source + size]


def _repeat(data: bytearray, random: Random) -> None:
    start = random.randrange(len(data) + 1)
    piece = bytes(data[start : start + random.choice((1, 4, 64))])
    data[start:start] = piece * random.choice((1, 10, 1000))


def _number(data: bytearray, random: Random) -> None:
    """A length, count or offset becomes another."""
    size = random.choice((1, 2, 4, 8))
    if len(data) >= size:
        start = random.randrange(len(data) - size + 1)
        if random.random() < 0.5:
            start -= start % size
        order: Any = random.choice(("little", "little", "big"))
        old = int.from_bytes(data[start : start + size], order)
        new = random.choice((*NUMBERS, len(data), old + 1, old - 1, old * 2, old * 256))
        data[start : start + size] = (new % (1 << (8 * size))).to_bytes(size, order)


_BYTE_CHANGES: tuple[Callable[[bytearray, Random], None], ...] = (
    *(_flip, _flip, _number, _number, _number),
    *(_truncate, _delete, _insert, _splice, _repeat),
)


def mutate_text(content: bytes, random: Random) -> bytes:
    """A word, number or line of a text (CSV, YAML, ...) becomes another, is doubled or lost."""
    words = list(re.finditer(rb"[^\s,;:\"'\[\]{}]+|[\s,;:\"'\[\]{}]", content))
    if not words or random.random() < 0.2:
        return mutate_bytes(content, random)
    word = random.choice(words)
    choices = (
        b"",
        word.group() * 2,
        str(random.choice(NUMBERS)).encode(),
        random.choice(TEXTS).encode("utf-8"),
    )
    new = random.choice((*choices, random.choice(words).group(), b"\n", b'"', b"&a [*a]", b"9" * 400))
    return content[: word.start()] + new + content[word.end() :]


def mutate_json(content: bytes, random: Random) -> bytes:
    """A value of a JSON text becomes another, moves, is lost or doubled; of JSON lines, in one line."""
    if random.random() < 0.25:
        return mutate_text(content, random)
    lines = content.split(b"\n")
    index = random.randrange(len(lines))
    for candidate in (index, 0):
        try:
            value = json.loads(content if len(lines) < 2 or lines[-1:] != [b""] else lines[candidate])
        except ValueError:
            continue
        text = json.dumps(mutate_value(value, random)).encode()
        if len(lines) < 2 or lines[-1:] != [b""]:
            return text
        lines[candidate] = text
        return b"\n".join(lines)
    try:
        return json.dumps(mutate_value(json.loads(content), random)).encode()
    except ValueError:
        return mutate_bytes(content, random)


def mutate_value(value: Any, random: Random) -> Any:
    """A copy of lists, dicts and plain values in which one is another."""
    if random.random() < 0.3 or not isinstance(value, list | dict) or not value:
        if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.5:
            return random.choice(
                (value + 1, -value, value * 1000, float(value), str(value), [value], *NUMBERS)
            )
        if isinstance(value, list) and value and random.random() < 0.5:
            return random.choice((value[1:], value * 2, value[::-1], [value], value[:-1], [*value, None]))
        return random.choice(VALUES)
    if isinstance(value, list):
        index = random.randrange(len(value))
        return [*value[:index], mutate_value(value[index], random), *value[index + 1 :]]
    key = random.choice(list(value))
    if random.random() < 0.15:
        return {name: item for name, item in value.items() if name != key}
    if random.random() < 0.1:
        return {(random.choice(TEXTS) if name == key else name): item for name, item in value.items()}
    return {**value, key: mutate_value(value[key], random)}


_TRICKS = (
    b"N",
    b"0",
    b"(",
    b"t",
    b"]",
    b"}",
    b"a",
    b"s",
    b"e",
    b"u",
    b")",
    b"\x81",
    b"R",
    b"b",
    b"\x85",
    b"\x94",
)


def _instructions(value: Any) -> bytes:
    """What pushes a value, without memo, so that it fits anywhere into a pickle."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=3)
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue()[2:-1]  # without the protocol and the stop


_PUSHED = tuple(
    _instructions(value)
    for value in (
        *VALUES,
        *(b"", b"\xff", {1: 2}, [{}], (1, "a"), {"a"}, -(10**400), 1 + 2j),
        *(np.float64("nan"), np.float32(1), np.int64(-1), np.True_),
        *(np.zeros(0), np.zeros(2), np.zeros((3, 3), np.float32), np.full(4, np.nan), np.arange(3)),
        *(
            np.array("a"),
            np.array(["a", "b"]),
            np.array([None, {}, "x"]),
            np.array([b"a"]),
            np.zeros(2, bool),
        ),
    )
)


def mutate_pickle(content: bytes, random: Random) -> bytes:
    """An instruction of a pickle is lost, doubled, moved or altered, or a value becomes another."""
    if random.random() < 0.15:
        return mutate_bytes(content, random)
    try:
        places = [position for _, _, position in pickletools.genops(content) if position is not None]
    except ValueError:
        return mutate_bytes(content, random)
    # frames declare lengths that the changes would break: the rest is the same without them
    operations = [content[a:b] for a, b in zip(places, [*places[1:], len(content)], strict=True)]
    operations = [operation for operation in operations if operation[:1] != b"\x95"]
    for _ in range(random.choice((1, 1, 2, 5))):
        index = random.randrange(1, len(operations))
        kind = random.randrange(8)
        if kind == 0:
            operations[index] = b""
        elif kind > 5:
            operations[index] += b"0" + random.choice(_PUSHED)
        elif kind == 1:
            operations.insert(index, random.choice(operations))
        elif kind == 2:
            other = random.randrange(1, len(operations))
            operations[index], operations[other] = operations[other], operations[index]
        elif kind == 3:
            operations.insert(index, random.choice(_TRICKS))
        elif kind == 4:
            operations[index] = random.choice(operations)
        else:
            data = bytearray(operations[index])
            random.choice((_flip, _number))(data, random)
            operations[index] = bytes(data)
    return b"".join(operations)


def mutate_xz_pickle(content: bytes, random: Random) -> bytes:
    """The pickle inside, or now and then its container."""
    if random.random() < 0.1:
        return mutate_bytes(content, random)
    try:
        inner = lzma.decompress(content)
    except (lzma.LZMAError, EOFError):
        return mutate_bytes(content, random)
    return lzma.compress(mutate_pickle(inner, random), preset=0)


def mutate_sqlite(content: bytes, random: Random) -> bytes:
    """A cell, column or table of a database becomes another."""
    if random.random() < 0.4:
        return mutate_bytes(content, random)
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(content)
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = random.choice(tables)
        columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
        column = random.choice(columns)
        kind = random.randrange(8)
        if kind == 0:
            connection.execute(f'DROP TABLE "{table}"')
        elif kind == 1:
            connection.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO "other"')
        elif kind == 2:
            connection.execute(f'DELETE FROM "{table}"')
        elif kind == 3:
            connection.execute(f'ALTER TABLE "{table}" RENAME TO "other"')
            connection.execute(f'CREATE VIEW "{table}" AS SELECT * FROM "other", "other" AS "again"')
        else:
            rows = [row[0] for row in connection.execute(f'SELECT rowid FROM "{table}"')] or [0]
            row = random.choice(rows)
            (old,) = connection.execute(
                f'SELECT "{column}" FROM "{table}" WHERE rowid = ?', (row,)
            ).fetchone()
            new = random.choice((None, 0, -1, 2**62, 1.5, "", "x", b"", b"GP", "nan"))
            if isinstance(old, bytes) and random.random() < 0.8:
                new = mutate_bytes(old, random)
            connection.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', (new, row))
        connection.commit()
        return connection.serialize()
    except (sqlite3.Error, TypeError):
        return mutate_bytes(content, random)
    finally:
        connection.close()


def mutate_parquet(content: bytes, random: Random) -> bytes:
    """A column, row or the metadata of a table becomes another; or the bytes."""
    if random.random() < 0.5:
        return mutate_bytes(content, random)
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError):
        return mutate_bytes(content, random)
    index, count = random.randrange(table.num_columns), table.num_rows
    name = table.column_names[index]
    kind = random.randrange(12)
    if kind == 0:
        table = table.remove_column(index)
    elif kind == 1:
        table = table.append_column(name, table.column(index))
    elif kind == 2:
        table = table.rename_columns([random.choice(TEXTS) if n == name else n for n in table.column_names])
    elif kind == 3:
        rows = [random.randrange(count) for _ in range(random.choice((0, 1, count, 2 * count)))]
        table = table.take(pa.array(rows, pa.int64()))
    elif kind == 4:
        metadata = {key: mutate_json(value, random) for key, value in (table.schema.metadata or {}).items()}
        table = table.replace_schema_metadata(metadata)
    elif kind < 8:  # one value
        values = table.column(index).to_pylist()
        values[random.randrange(count)] = mutate_value(random.choice(values), random)
        try:
            table = table.set_column(index, name, pa.array(values, table.schema.types[index]))
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return mutate_bytes(content, random)
    else:
        table = table.set_column(index, name, _column(count, random))
    buffer = io.BytesIO()
    try:
        pq.write_table(table, buffer)
    except pa.ArrowException:  # some types cannot be written
        return mutate_bytes(content, random)
    return buffer.getvalue()


def _column(count: int, random: Random) -> pa.Array:
    """A column of another type, with or without missing values."""
    value = random.choice(_CELLS)
    values = [None if random.random() < 0.1 else value for _ in range(count)]
    column = pa.array(values)
    is_encoded = random.random() < 0.1 and not pa.types.is_nested(column.type)
    return column.dictionary_encode() if is_encoded else column


_CELLS = (
    *(None, True, -1, 2**62, 0.5, float("nan"), "", "x" * 500, b"", b"\xff", [], [1.0], [[0]], ["a", None]),
    *({"a": 1}, [0.0] * 24, np.datetime64("2020-01-01", "s"), np.timedelta64(1, "s")),
)


def mutate_safetensors(content: bytes, random: Random) -> bytes:
    """The header, with its length put right; or the bytes."""
    if random.random() < 0.4 or len(content) < 8:
        return mutate_bytes(content, random)
    (size,) = struct.unpack("<Q", content[:8])
    header = mutate_json(content[8 : 8 + size].rstrip(b" "), random)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def mutate_pack(content: bytes, random: Random) -> bytes:
    """Any part of a pack of scenes, with all checksums and sizes put right: what only a forger writes."""
    if random.random() < 0.1 or len(content) < _HEADER_SIZE:
        return mutate_bytes(content, random)
    magic, version, num_scenes, start, size, _, _, _ = _HEADER.unpack_from(content)
    meta = json.loads(content[start : start + size])
    body = bytearray(content[:start])
    tables = meta["tables"]

    def column(name: str) -> tuple[str, int, int]:
        dtype, shape, offset, _ = tables[name]
        return dtype, shape[0], offset

    kind = random.randrange(4)
    if kind == 0:
        meta = mutate_value(meta, random)
    elif kind == 1:  # a number of a table
        dtype, shape, offset, _ = tables[random.choice(list(tables))]
        width = int(dtype[2:])
        count = shape[0]
        if count:
            at = offset + width * random.randrange(count)
            piece = bytearray(body[at : at + width])
            random.choice((_number, _flip))(piece, random)
            body[at : at + width] = piece
    else:  # a scene
        _, count, offsets = column("index.offset")
        sizes = column("index.size")[2]
        row = random.randrange(count)
        (at,) = struct.unpack_from("<q", body, offsets + 8 * row)
        (length,) = struct.unpack_from("<q", body, sizes + 8 * row)
        blob = _mutate_scene(bytes(body[at : at + length]), random)
        if len(blob) > length:  # at the end of the file there is room
            at = len(body)
            body += blob
            struct.pack_into("<q", body, offsets + 8 * row, at)
        else:
            body[at : at + len(blob)] = blob
        struct.pack_into("<q", body, sizes + 8 * row, len(blob))
    return _sealed(bytes(body), meta, (magic, version, num_scenes), random)


def _mutate_scene(blob: bytes, random: Random) -> bytes:
    head = struct.Struct("<q13I")
    if len(blob) < head.size:
        return mutate_bytes(blob, random)
    fields = list(head.unpack_from(blob))
    split = head.size + fields[1]
    references, body = blob[head.size : split], blob[split:]
    kind = random.randrange(3)
    if kind == 0:
        index = random.randrange(2, len(fields))
        fields[index] = random.choice(
            (0, 1, fields[index] + 1, max(fields[index] - 1, 0), 1000, 2**31, 2**32 - 1)
        )
    elif kind == 1:
        planes = bytearray(zlib.decompress(references))
        random.choice(_BYTE_CHANGES)(planes, random)
        references = zlib.compress(bytes(planes))
    else:
        inner = bytearray(zlib.decompress(body))
        random.choice(_BYTE_CHANGES)(inner, random)
        body = zlib.compress(bytes(inner))
    fields[1] = len(references)
    return head.pack(*fields) + references + body


def _sealed(body: bytes, meta: Any, fixed: tuple[Any, ...], random: Random) -> bytes:
    """A pack with right checksums, as far as its tables can be found."""
    data = bytearray(body)
    try:
        tables = meta["tables"]
        for name, (dtype, shape, offset, crc) in tables.items():
            if crc is None or name == "index.crc":
                continue
            count = 1
            for length in shape:
                count *= length
            stop = offset + count * int(dtype[2:])
            if 0 <= offset <= stop <= len(data):
                tables[name][3] = zlib.crc32(data[offset:stop])
        offsets, sizes, sums = (tables[f"index.{name}"][2] for name in ("offset", "size", "crc"))
        for row in range(tables["index.crc"][1][0]):
            (at,) = struct.unpack_from("<q", data, offsets + 8 * row)
            (size,) = struct.unpack_from("<q", data, sizes + 8 * row)
            if 0 <= at <= at + size <= len(data):
                struct.pack_into("<I", data, sums + 4 * row, zlib.crc32(data[at : at + size]))
        _, shape, offset, _ = tables["index.crc"]
        tables["index.crc"][3] = zlib.crc32(data[offset : offset + 4 * shape[0]])
    except (KeyError, TypeError, ValueError, IndexError, struct.error, AttributeError):
        pass  # the meta data are beyond repair: they stay as they are
    text = json.dumps(meta).encode()
    header = _HEADER.pack(*fixed, len(data), len(text), len(data) + len(text), zlib.crc32(text), 0)[:-4]
    data[:_HEADER_SIZE] = (header + struct.pack("<I", zlib.crc32(header))).ljust(_HEADER_SIZE, b"\0")
    return bytes(data) + text


MUTATORS: Mapping[str, Callable[[bytes, Random], bytes]] = {
    "bytes": mutate_bytes,
    "text": mutate_text,
    "json": mutate_json,
    "pickle": mutate_pickle,
    "xz pickle": mutate_xz_pickle,
    "sqlite": mutate_sqlite,
    "parquet": mutate_parquet,
    "safetensors": mutate_safetensors,
    "pack": mutate_pack,
}
