"""Parquet files of strangers: an error that names the file, whatever byte is another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drivefine_agent.data.parquet import read_frame, read_parquet
from drivefine_agent.data.parquet_footer import largest_value_count
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.trajectory_file import TrajectoryFile

EVERY_BYTE = """
import sys
from pathlib import Path
from drivefine_agent.data.parquet import read_parquet
from drivefine_agent.data.parquet_footer import largest_value_count
from drivefine_agent.errors import DataError
path = Path(sys.argv[1])
whole, refused = path.read_bytes(), 0
for place in range(len(whole)):
    for value in {(whole[place] + 1) % 256, whole[place] ^ 0x80, 0}:
        path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        try:
            read_parquet(path)
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
print("refused", refused)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "a.parquet"
    table = pa.table(
        {"token": ["t0", "t1"], "trajectory_id": ["final"] * 2, "poses": [[1.5, 2.0], [0.5] * 24]}
    )
    pq.write_table(table, file)
    return file


def test_columns_come_back(path: Path) -> None:
    assert read_frame(path, ["token"])["token"].tolist() == ["t0", "t1"]
    assert read_parquet(path).column("poses").to_pylist()[0] == [1.5, 2.0]


def test_no_byte_ends_the_process(path: Path) -> None:
    """pyarrow ends it when it is asked for a column's counts and its statistics do not fit."""
    done = subprocess.run([sys.executable, "-c", EVERY_BYTE, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[1]) > 100


@pytest.mark.parametrize(("old", "new"), [(b"token", b"t\xffken"), (b"t1", b"\xff1")], ids=["name", "cell"])
def test_texts_that_are_no_utf_8_are_damage(old: bytes, new: bytes, path: Path) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    with pytest.raises(DataError, match=r"a\.parquet"):
        list(TrajectoryFile(path).tokens())
    with pytest.raises(DataError, match=r"a\.parquet"):
        read_frame(path)


def test_more_rows_than_the_file_can_hold_are_refused(path: Path) -> None:
    pq.write_table(pa.table({"token": pa.nulls(3_000_000)}), path)
    size = path.stat().st_size
    assert 10**6 + 100 * size < 3_000_000
    with pytest.raises(DataError, match=rf"of {size} bytes may hold \d+ values, got 3000000: .*a\.parquet"):
        read_parquet(path)


def test_the_values_of_one_long_row_are_counted_before_they_are_read(path: Path) -> None:
    """Twenty million equal numbers in one row take about a kilobyte."""
    pq.write_table(
        pa.table({"poses": pa.ListArray.from_arrays([0, 20_000_000], pa.repeat(1.0, 20_000_000))}), path
    )
    assert path.stat().st_size < 2000
    with pytest.raises(DataError, match=r"may hold \d+ values, got 20000000: .*a\.parquet"):
        read_parquet(path)


def test_the_footer_is_read_as_pyarrow_reads_it(path: Path) -> None:
    """Of a file with several row groups, nulls, nested and empty columns."""
    table = pa.table({"a": [1, None, 3], "b": [[1.0] * 5, [], None], "c": [{"d": "x"}, None, {"d": "y"}]})
    pq.write_table(table, path, row_group_size=2)
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    expected = max(g.column(c).num_values for g in groups for c in range(g.num_columns))
    assert expected == 6
    content = path.read_bytes()
    assert largest_value_count(content[-8 - metadata.serialized_size : -8]) == expected


@pytest.mark.parametrize(
    "footer",
    [
        b"",
        b"\x15",
        b"\x4c\x00",
        b"\x1c" * 100,
        b"\x19" + b"\x19" * 5000 + b"\0",
        b"\x49\xfc\xff\xff\xff\xff\x0f",
    ],
)
def test_what_is_no_footer_is_refused(footer: bytes) -> None:
    with pytest.raises(ValueError, match="a Parquet footer"):
        largest_value_count(footer)
