"""A look at the structure of a geometry in well-known binary, before GEOS reads it.

GEOS follows any nesting of collections, each a call deeper, until the stack ends and the process with it.
"""

from __future__ import annotations

import struct

from drivefine_agent.errors import DataError

_POINT, _LINE, _POLYGON, _MULTI_POINT, _MULTI_LINE, _MULTI_POLYGON = range(1, 7)
_PART_OF = {_MULTI_POINT: _POINT, _MULTI_LINE: _LINE, _MULTI_POLYGON: _POLYGON}


def check_wkb(content: bytes, where: str) -> None:
    """Check that a geometry is points, lines or polygons, and that its counts fit its bytes.

    Raises:
      DataError: it is damaged, or another kind.
    """
    try:
        end = _end(content, 0, None)
    except (struct.error, IndexError, ValueError) as error:
        raise DataError(f"a geometry is damaged ({error}): {where}; fetch or write the file again") from error
    if end > len(content):
        raise DataError(
            f"a geometry must hold the points it declares, got {len(content)} bytes of {end}: {where}; fetch "
            "or write the file again"
        )


def _end(content: bytes, start: int, wanted: int | None) -> int:
    """Where a geometry ends that starts at `start`."""
    order = "<" if content[start] else ">"
    (code,) = struct.unpack_from(f"{order}I", content, start + 1)
    has_z, has_m = bool(code & 0x80000000), bool(code & 0x40000000)
    position = start + 5 + (4 if code & 0x20000000 else 0)
    iso, kind = divmod(code & 0x0FFFFFFF, 1000)
    size = 8 * (2 + (has_z or iso in (1, 3)) + (has_m or iso in (2, 3)))
    if wanted not in (None, kind) or iso > 3:
        raise ValueError(f"a part of type {code}")
    if kind == _POINT:
        return position + size
    (count,) = struct.unpack_from(f"{order}I", content, position)
    position += 4
    if kind == _LINE:
        return position + count * size
    if kind == _POLYGON:
        for _ in range(count):
            (length,) = struct.unpack_from(f"{order}I", content, position)
            position += 4 + length * size
        return position
    if kind not in _PART_OF:
        raise ValueError(f"a geometry of type {code}, neither points, lines nor polygons")
    for _ in range(count):
        position = _end(content, position, _PART_OF[kind])
    return position
