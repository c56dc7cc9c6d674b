"""How many values a Parquet file declares, read from its footer by ourselves.

pyarrow has the numbers too, but ends the process, without an exception, when it is asked for those of a
column whose statistics do not fit (`RowGroupMetaData.column`, pyarrow 26). The footer is a struct of Thrift's
compact protocol; the fields are those of parquet-format's parquet.thrift: FileMetaData 4 row_groups, RowGroup
1 columns, ColumnChunk 3 meta_data, ColumnMetaData 5 num_values.
"""

from __future__ import annotations

from typing import Any

_MAX_DEPTH = 32
_TRUE, _FALSE = 1, 2


def largest_value_count(footer: bytes) -> int:
    """The largest number of values that any column of any row group declares.

    Args:
      footer: FileMetaData, without the length and magic bytes behind it.

    Raises:
      ValueError: it is no such struct.
    """
    try:
        groups = _Compact(footer).struct(0).get(4, [])
        return max((int(column[3][5]) for group in groups for column in group[1]), default=0)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"a Parquet footer must list row groups and columns, got another ({error!r})"
        ) from error


class _Compact:
    """Values of Thrift's compact protocol: structs as dicts by field number."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 15
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"a Parquet footer must be nested at most {_MAX_DEPTH} deep, got more")
        match kind:
            case 1 | 2 | 3:  # a byte; in lists, booleans are such too
                return self._byte()
            case 4 | 5 | 6:  # integers of 16 to 64 bits
                return self._zigzag()
            case 7:  # a double
                return self._skip(8)
            case 8:  # bytes
                return self._skip(self._varint())
            case 9 | 10:  # a list or set
                head = self._byte()
                count = head >> 4 if head >> 4 != 15 else self._varint()
                self._check(count)  # each takes a byte at least
                return [self._value(head & 15, depth + 1) for _ in range(count)]
            case 12:  # a struct
                return self.struct(depth + 1)
        raise ValueError(f"a Parquet footer has values of known types, got type {kind}")  # no maps either

    def _byte(self) -> int:
        self._check(1)
        self._place += 1
        return self._data[self._place - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of a Parquet footer must have at most 10 bytes, got more")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, count: int) -> None:
        self._check(count)
        self._place += count

    def _check(self, count: int) -> None:
        if not 0 <= count <= len(self._data) - self._place:
            raise ValueError(f"a Parquet footer must hold what it declares, got {count} bytes too many")
