"""The scenes behind a table: kept, read, refused, and enough to make its page again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drivefine_agent.errors import DataError
from drivefine_agent.reproduction.job import Reproduction, Settings
from drivefine_agent.reproduction.scores import TableScores, add_scores, read_scores, write_scores
from drivefine_agent.reproduction.tables import TABLES, Row, Table

TABLE = Table(
    "Things", ("DAC", "PDMS"), (Row("first", "human", base=None), Row("second", "constant_velocity"))
)
LOG_OF = {"t0": "log0", "t1": "log0", "t2": "log1"}


def result(*scores: float) -> pd.DataFrame:
    """As tools/evaluate.py's results are read: the last scene has failed; other columns are not kept."""
    frame = pd.DataFrame({"token": list(LOG_OF), "valid": [True, True, False], "NC": 1.0, "DAC": 0.5})
    return frame.assign(PDMS=scores)


def filled(settings: dict[str, object]) -> TableScores:
    scores = TableScores(settings, dict(LOG_OF))
    for seed in (0, 2):
        scores.add("first", seed, result(0.1, 0.2 + seed, float("nan")), TABLE.columns)
        scores.add("second", seed, result(0.3, 0.4, float("nan")), TABLE.columns)
        scores.minutes[seed] = 1.5 + seed
    return scores


def test_what_is_written_is_read(tmp_path: Path) -> None:
    settings = {"recipes": {"rl": ("a=1",)}}
    path = tmp_path / "scores" / "table.parquet"
    write_scores(path, filled(settings))
    read = read_scores(path, settings)
    assert (read.log_of, read.minutes) == (LOG_OF, {0: 1.5, 2: 3.5})
    assert list(read.tables) == [("first", 0), ("second", 0), ("first", 2), ("second", 2)]
    one = read.tables["first", 2]
    assert list(one.columns) == ["token", "valid", "DAC", "PDMS"]
    assert one["token"].tolist() == ["t0", "t1", "t2"]
    assert one["valid"].tolist() == [True, True, False]
    np.testing.assert_array_equal(one["PDMS"], np.array([0.1, 2.2, np.nan], np.float32))
    assert [read.has(TABLE, seed) for seed in (0, 1, 2)] == [True, False, True]
    # A row that the table has got since is in no seed yet.
    longer = replace(TABLE, rows=(*TABLE.rows, Row("third", "human")))
    assert not read.has(longer, 0)


def test_seeds_that_another_command_has_added_meanwhile_stay(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    mine, theirs = TableScores({}, dict(LOG_OF)), TableScores({}, dict(LOG_OF))
    for scores, seed in ((mine, 0), (theirs, 1)):
        scores.add("first", seed, result(0.1, 0.2, 0.3 + seed), TABLE.columns)
        scores.minutes[seed] = 1.0 + seed
    add_scores(path, theirs)
    add_scores(path, mine)
    read = read_scores(path, {})
    assert sorted(read.tables) == [("first", 0), ("first", 1)]
    assert read.minutes == {0: 1.0, 1: 2.0}
    np.testing.assert_array_equal(read.tables["first", 1]["PDMS"], np.array([0.1, 0.2, 1.3], np.float32))


def test_no_file_is_no_seed_and_a_damaged_or_foreign_one_an_error(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    assert read_scores(path, {}).tables == {}
    write_scores(path, filled({"recipes": {"rl": ["a=1"]}, "data": [1]}))
    with pytest.raises(DataError, match=r"other settings \(recipes\)"):
        read_scores(path, {"recipes": {"rl": ["a=2"]}, "data": [1]})
    foreign = pq.read_table(path).replace_schema_metadata({})
    pq.write_table(foreign, path)
    with pytest.raises(DataError, match="cannot read the scores of a table"):
        read_scores(path, {})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot read the scores of a table"):
        read_scores(path, {})


def damaged(lines: pa.Table, case: str) -> pa.Table:
    """As fuzzing has found them, and near relations."""
    metadata = {
        "settings are a list": b'{"settings": [1], "minutes": {}}',
        "minutes are none": b'{"settings": {}, "minutes": {"a": 1}}',
        "utf-32": '{"settings": {}, "minutes": {}}'.encode("utf-32"),
    }
    columns = {
        "seeds are bytes": ("seed", pa.array([b""] * len(lines))),
        "a seed is missing": ("seed", pa.array([None] + [0] * (len(lines) - 1))),
        "a row is missing": ("row", pa.array([None] + ["first"] * (len(lines) - 1))),
        "tokens are numbers": ("token", pa.array(range(len(lines)))),
        "scores are texts": ("PDMS", pa.array(["0.1"] * len(lines))),
    }
    if case in metadata:
        return lines.replace_schema_metadata({b"drivefine": metadata[case]})
    name, values = columns[case]
    return lines.set_column(lines.schema.get_field_index(name), name, values)


@pytest.mark.parametrize(
    "case",
    [
        "settings are a list",
        "minutes are none",
        "utf-32",
        "seeds are bytes",
        "a seed is missing",
        "a row is missing",
        "tokens are numbers",
        "scores are texts",
    ],
)
def test_damaged_columns_and_metadata_are_one_error(case: str, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    write_scores(path, filled({}))
    pq.write_table(damaged(pq.read_table(path), case), path)
    with pytest.raises(
        DataError, match=r"cannot read the scores of a table from .*table\.parquet: .*; delete it"
    ):
        read_scores(path, {})


def settings_of(folder: Path, output: str) -> Settings:
    data = {"dataset_root": f"{output}/world", "train_test_split": "world_train"}
    return Settings(
        tables=("table5",),
        output=output,
        results=str(folder / "results"),
        seeds=(0, 1),
        jobs=1,
        world={"seed": 0},
        test_world=None,
        two_stage_world=None,
        train=data,
        validation=data,
        test=data,
        two_stage=data,
        recipes={"sft": ("a=1",), "rl": ("b=1",)},
    )


def test_settings_are_told_without_the_output_folder(tmp_path: Path) -> None:
    table = TABLES["table5"]
    told = Reproduction(settings_of(tmp_path, "/data/out")).fingerprint(table)
    assert told == Reproduction(settings_of(tmp_path, "elsewhere")).fingerprint(table)
    assert "/data" not in json.dumps(told)
    assert told["recipes"] == {"rl": ["b=1"], "sft": ["a=1"]}
    other = replace(settings_of(tmp_path, "/data/out"), recipes={"sft": ("a=1",), "rl": ("b=2",)})
    assert Reproduction(other).fingerprint(table) != told


def test_pages_need_nothing_but_the_scores(tmp_path: Path, reproduce: ModuleType) -> None:
    """Two seeds lie there; the output folder does not even exist afterwards."""
    settings, table = settings_of(tmp_path, str(tmp_path / "out")), TABLES["table5"]
    scores = TableScores(Reproduction(settings).fingerprint(table), dict(LOG_OF))
    for seed in settings.seeds:
        for row, value in zip(table.rows, (0.5, 0.75), strict=True):
            lines = pd.DataFrame({"token": list(LOG_OF), "valid": True})
            lines = lines.assign(**dict.fromkeys(table.columns, value + seed / 8))
            scores.add(row.title, seed, lines, table.columns)
        scores.minutes[seed] = 10 * seed + 7.2
    write_scores(tmp_path / "results" / "scores" / "table5.parquet", scores)
    reproduce.reproduce(settings, ["seeds=[0,1]"])
    page = (tmp_path / "results" / "table5.md").read_text()
    assert "took 7, 17 minutes by seed" in page
    assert "(2 logs)" in page
    assert "50.0, 62.5" in page  # EPDMS by seed
    assert "75.0, 87.5" in page
    assert (tmp_path / "results" / "table5.png").stat().st_size > 1000
    csv = pd.read_csv(tmp_path / "results" / "table5.csv")
    assert csv["difference"].iloc[1] == pytest.approx(0.25)
    assert not (tmp_path / "out").exists()
