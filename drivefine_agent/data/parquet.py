"""Columns of Parquet files that nobody vouches for; what a file declares is compared with its size first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from drivefine_agent.data.parquet_footer import largest_value_count
from drivefine_agent.errors import DataError

_VALUES_PER_BYTE = 100  # equal values in a row take next to no room; scores and poses take bytes each
_ALWAYS_ALLOWED_VALUES = 10**6

DAMAGE = (OSError, pa.ArrowException, ValueError, LookupError, TypeError, MemoryError, OverflowError)


def read_parquet(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Columns of a file (default: all) in memory.

    Raises:
      DataError: it is missing, no Parquet file, lacks a column or has one twice, or declares far more values
        than it can hold.
    """
    path = Path(path)
    try:
        with pq.ParquetFile(path) as file:
            _check_counts(file.metadata, path)
            names = file.schema_arrow.names
            if len({*names}) < len(names) or not {*(columns or ())} <= {*names}:
                raise DataError(
                    f"a Parquet file needs the columns {[*(columns or ())]}, each once, got {names}"
                )
            table = file.read(columns=None if columns is None else list(columns))
        table.validate(full=True)
        return table
    except DataError as error:
        raise DataError(f"{error}: {path}; write it again") from error
    except DAMAGE as error:
        raise DataError(f"not a readable Parquet file ({error!s:.200}): {path}; write it again") from error


def read_frame(path: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The same as a table of pandas, without any index that the file may name.

    Raises:
      DataError: see `read_parquet`.
    """
    table = read_parquet(path, columns)
    try:
        return table.replace_schema_metadata(None).to_pandas()
    except DAMAGE as error:
        raise DataError(f"not a readable Parquet file ({error!s:.200}): {path}; write it again") from error


def _check_counts(metadata: pq.FileMetaData, path: Path) -> None:
    """Of rows, of every column, and of the decompressed bytes."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size - 8 - metadata.serialized_size)
        footer = file.read(metadata.serialized_size)
    most = _ALWAYS_ALLOWED_VALUES + _VALUES_PER_BYTE * size
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    counts = [metadata.num_rows, largest_value_count(footer)]
    counts += [count for group in groups for count in (group.num_rows, group.total_byte_size)]
    if not all(0 <= count <= most for count in counts):
        wrong = next(count for count in counts if not 0 <= count <= most)
        raise DataError(f"a Parquet file of {size} bytes may hold {most} values, got {wrong}")
