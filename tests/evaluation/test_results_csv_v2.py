from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.results_csv_v2 import (
    COLUMNS_TWO_STAGE,
    COMBINED_TOKEN,
    STAGE_ONE_TOKEN,
    STAGE_TWO_TOKEN,
    one_stage_csv,
    read_one_stage,
    read_two_stage,
    rules_of_csv,
    two_stage_csv,
    write_one_stage,
    write_two_stage,
)
from drivefine_agent.evaluation.scored_frames import COLUMNS_ONE_STAGE, METRICS_V2
from drivefine_agent.evaluation.two_stage import GROUP_COLUMNS, TwoStageResult
from drivefine_agent.scoring.two_stage import StageMeans

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
ONE_STAGE = sorted(path.name for path in GOLDEN.glob("v22_one_*.csv"))
TWO_STAGE = "v22_two_cv.csv"


def rows(**scores: float | None) -> pd.DataFrame:
    """Rows with one value in all metrics; None failed."""
    table = pd.DataFrame(
        {name: [np.nan if score is None else score for score in scores.values()] for name in METRICS_V2}
    )
    table.insert(0, "token", pd.Series(list(scores), dtype=object))
    table.insert(1, "valid", [score is not None for score in scores.values()])
    return table


def result(first: pd.DataFrame, second: pd.DataFrame, means: StageMeans, **left_out: str) -> TwoStageResult:
    groups = pd.DataFrame([("n", True, "p", 0.5, 0.5, 0.25)], columns=list(GROUP_COLUMNS))
    return TwoStageResult(first, second, means, groups, {}, left_out, ())


def result_of_official() -> TwoStageResult:
    """The official two-stage file taken apart."""
    whole = pd.read_csv(GOLDEN / TWO_STAGE, index_col=0, dtype=object)
    table, _ = read_two_stage(GOLDEN / TWO_STAGE)
    first, second = (
        table[table["stage"] == stage].drop(columns="stage").reset_index(drop=True) for stage in (1, 2)
    )
    summary = whole.iloc[-1]
    names = METRICS_V2[:-1]
    one, two = (
        [*(float(summary[f"{name}_{stage}"]) for name in names), float(whole.iloc[row]["score"])]
        for stage, row in (("stage_one", -3), ("stage_two", -2))
    )
    combined = np.full(len(METRICS_V2), np.nan)
    combined[-1] = float(summary["score"])
    return result(first, second, StageMeans(np.array(one), np.array(two), combined))


def test_all_official_files_are_here() -> None:
    assert len(ONE_STAGE) == 4


@pytest.mark.parametrize("name", ONE_STAGE)
def test_an_official_one_stage_file_read_and_written_again_is_the_same_text(name: str) -> None:
    assert one_stage_csv(read_one_stage(GOLDEN / name)) == (GOLDEN / name).read_text()


def test_the_official_two_stage_file_read_and_written_again_is_the_same_text() -> None:
    assert two_stage_csv(result_of_official()) == (GOLDEN / TWO_STAGE).read_text()


def test_columns_are_the_official_ones() -> None:
    for name, columns in ((ONE_STAGE[0], COLUMNS_ONE_STAGE), (TWO_STAGE, COLUMNS_TWO_STAGE)):
        assert (GOLDEN / name).read_text().splitlines()[0].split(",") == ["", *columns]


def test_the_official_two_stage_file_has_12_and_48_samples_and_three_summaries() -> None:
    table, summaries = read_two_stage(GOLDEN / TWO_STAGE)
    assert list(table["stage"].value_counts().sort_index()) == [12, 48]
    assert {len(token) for token in table.loc[table["stage"] == 2, "token"]} == {17}
    assert summaries == {
        STAGE_ONE_TOKEN: pytest.approx(0.32633304468187235, abs=1e-15),
        STAGE_TWO_TOKEN: pytest.approx(0.3819323363271989, abs=1e-15),
        COMBINED_TOKEN: pytest.approx(0.2769550334981304, abs=1e-15),
    }


def test_means_leave_failed_scenes_and_missing_comfort_out(tmp_path: Path) -> None:
    table = rows(a=0.2, b=None, c=0.6)
    table.loc[0, "two_frame_extended_comfort"] = np.nan
    write_one_stage(tmp_path / "r.csv", table)
    last = (tmp_path / "r.csv").read_text().splitlines()[-1].split(",")
    assert last[:3] == ["3", "average_all_frames", "False"]
    assert float(last[-1]) == pytest.approx(0.4)
    assert float(last[-2]) == pytest.approx(0.6)
    pd.testing.assert_frame_equal(read_one_stage(tmp_path / "r.csv"), table)


def test_an_incomplete_two_stage_result_is_not_valid(tmp_path: Path) -> None:
    nothing = np.full(len(METRICS_V2), 0.5)
    first, second = rows(n=0.5, p=0.5), rows(**{"2a55da642281b2902": None, "06df1525c33080974": 0.25})
    given = result(first, second, StageMeans(nothing, nothing, nothing), n="1 of its samples failed")
    write_two_stage(tmp_path / "r.csv", given)
    text = (tmp_path / "r.csv").read_text().splitlines()
    assert text[3] == "2,2a55da642281b2902,False" + "," * 19
    assert [line.split(",")[2] for line in text[-3:]] == ["False"] * 3
    table, summaries = read_two_stage(tmp_path / "r.csv")
    assert list(table["valid"]) == [True, True, False, True]
    assert list(table["stage"]) == [1, 1, 2, 2]
    assert summaries[COMBINED_TOKEN] == 0.5


def test_tokens_of_digits_stay_text(tmp_path: Path) -> None:
    write_one_stage(tmp_path / "r.csv", rows(**{"1234567890123456": 0.5, "12e4567890123456": 0.5}))
    assert list(read_one_stage(tmp_path / "r.csv")["token"]) == ["1234567890123456", "12e4567890123456"]


@pytest.mark.parametrize(
    ("name", "read", "message"),
    [
        (ONE_STAGE[0], read_one_stage, "one row 'average_all_frames', got 24 scenes and 0"),
        (TWO_STAGE, read_two_stage, "expected one row for each of .*extended_pdm_score_combined"),
    ],
)
def test_a_truncated_file_is_refused(name: str, read: object, message: str, tmp_path: Path) -> None:
    text = (GOLDEN / name).read_text().splitlines()
    (tmp_path / "r.csv").write_text("\n".join(text[:-1]) + "\n")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "r.csv")


def test_a_file_with_a_scene_removed_is_refused(tmp_path: Path) -> None:
    text = (GOLDEN / ONE_STAGE[0]).read_text().splitlines()
    (tmp_path / "r.csv").write_text("\n".join(text[:3] + text[4:]) + "\n")
    with pytest.raises(DataError, match="not the mean of the rows"):
        read_one_stage(tmp_path / "r.csv")


@pytest.mark.parametrize("read", [read_one_stage, read_two_stage])
def test_missing_and_foreign_files_are_named(read: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv"):
        read(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match=r"expected NAVSIM 2\.2's columns"):
        read(GOLDEN / "v11_pdms_human_agent.csv")


def test_a_scene_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    text = (GOLDEN / ONE_STAGE[0]).read_text().splitlines()
    (tmp_path / "r.csv").write_text("\n".join([text[0], text[1], text[1], *text[2:]]) + "\n")
    with pytest.raises(DataError, match="each scene must occur once"):
        read_one_stage(tmp_path / "r.csv")


def test_files_of_all_three_benchmarks_are_told_apart() -> None:
    names = ("v11_pdms_human_agent.csv", ONE_STAGE[0], TWO_STAGE)
    assert [rules_of_csv(GOLDEN / name) for name in names] == ["navsim_v1", "navsim_v2", "navhard_two_stage"]
