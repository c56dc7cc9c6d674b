import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.results_csv import (
    COLUMNS_V1,
    METRICS_V1,
    average_row,
    format_csv,
    read_columns,
    read_csv,
    result_table,
    write_csv,
)
from drivefine_agent.scoring.types import SubScoresV1

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
OFFICIAL = ["v11_pdms_constant_velocity_agent.csv", "v11_pdms_human_agent.csv"]


def sub_scores(*scores: float) -> SubScoresV1:
    """All sub-scores 1 and the given total scores."""
    ones = np.ones(len(scores))
    return SubScoresV1(**{**{name: ones for name in METRICS_V1}, "score": np.array(scores)})


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_csv_read_and_written_again_is_the_same_text(name: str) -> None:
    path = GOLDEN / name
    assert format_csv(read_csv(path)) == path.read_text()


@pytest.mark.parametrize("name", OFFICIAL)
def test_average_equals_the_official_one(name: str) -> None:
    official = pd.read_csv(GOLDEN / name, index_col=0).iloc[-1]
    average = average_row(read_csv(GOLDEN / name)).iloc[0]
    assert average["token"] == official["token"] == "average"
    for metric in METRICS_V1:
        assert average[metric] == pytest.approx(official[metric], abs=1e-12)


def test_header_and_rows_are_navsims(tmp_path: Path) -> None:
    write_csv(tmp_path / "results.csv", result_table(["a", "b"], sub_scores(0.25, 0.75)))
    lines = (tmp_path / "results.csv").read_text().splitlines()
    official_header = (GOLDEN / OFFICIAL[0]).read_text().splitlines()[0]
    assert lines[0] == official_header
    assert lines[1] == "0,a,True,1.0,1.0,1.0,1.0,1.0,1.0,0.25"
    assert lines[3] == "2,average,True,1.0,1.0,1.0,1.0,1.0,1.0,0.5"


def test_a_failed_scene_is_nan_invalid_and_outside_the_mean() -> None:
    table = result_table(["a", "b", "c"], sub_scores(0.2, 0.9, 0.6), is_valid=[True, False, True])
    assert table.loc[1, list(METRICS_V1)].isna().all()
    average = average_row(table).iloc[0]
    assert average["valid"] == False  # noqa: E712  numpy bool
    assert average["score"] == pytest.approx((0.2 + 0.6) / 2)


def test_if_all_scenes_failed_the_mean_is_nan_not_zero() -> None:
    table = result_table(["a"], sub_scores(0.2), is_valid=[False])
    assert np.isnan(average_row(table).iloc[0]["score"])
    assert format_csv(table).splitlines()[-1] == "1,average,False" + "," * 7


def test_tokens_of_digits_stay_text(tmp_path: Path) -> None:
    """'1234567890123456' and '12e4567890123456' would otherwise come back as numbers."""
    tokens = ["1234567890123456", "12e4567890123456", "0000000000000001"]
    write_csv(tmp_path / "r.csv", result_table(tokens, sub_scores(0.1, 0.2, 0.3)))
    assert list(read_csv(tmp_path / "r.csv")["token"]) == tokens


def test_failed_rows_survive_a_roundtrip(tmp_path: Path) -> None:
    table = result_table(["a", "b"], sub_scores(0.2, 0.9), is_valid=[True, False])
    write_csv(tmp_path / "r.csv", table)
    pd.testing.assert_frame_equal(read_csv(tmp_path / "r.csv"), table)


def test_a_score_that_is_nan_is_not_valid() -> None:
    with pytest.raises(ValueError, match=r"valid row must have all metrics.*'b'"):
        result_table(["a", "b"], sub_scores(0.2, float("nan")))


def test_a_repeated_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"each scene must occur once.*'a'"):
        result_table(["a", "a"], sub_scores(0.2, 0.3))


def test_row_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="one row per token, got 1 tokens, 2 rows"):
        result_table(["a"], sub_scores(0.2, 0.3), [True])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv"):
        read_csv(tmp_path / "nothing.csv")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    text = (GOLDEN / OFFICIAL[0]).read_text().splitlines()
    (tmp_path / "r.csv").write_text("\n".join(text[:-1]) + "\n")
    with pytest.raises(DataError, match="one row 'average', got 24 scenes and 0"):
        read_csv(tmp_path / "r.csv")


def test_a_file_with_a_scene_removed_is_refused(tmp_path: Path) -> None:
    text = (GOLDEN / OFFICIAL[0]).read_text().splitlines()
    (tmp_path / "r.csv").write_text("\n".join(text[:3] + text[4:]) + "\n")
    with pytest.raises(DataError, match="not the mean of the rows"):
        read_csv(tmp_path / "r.csv")


def test_a_row_of_more_fields_than_the_header_is_refused_at_once(tmp_path: Path) -> None:
    """pandas would make an index of 50,000 levels of them, for half a minute."""
    path = tmp_path / "long.csv"
    path.write_text("token,score\n" + "0.5," * 50_000 + "1\n")
    started = time.process_time()
    with pytest.raises(DataError, match=r"long\.csv is not a readable CSV \(rows must .* got \[2, 50001\]"):
        read_columns(path, {"score"}, index_col=None)
    assert time.process_time() - started < 2.0


def test_foreign_columns_are_listed(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(",token,pdm_score\n0,a,0.5\n")
    with pytest.raises(DataError, match=r"expected NAVSIM 1.1's columns.*got \['token', 'pdm_score'\]"):
        read_csv(tmp_path / "r.csv")


def test_columns_are_the_official_ones() -> None:
    header = (GOLDEN / OFFICIAL[0]).read_text().splitlines()[0]
    assert header.split(",")[1:] == list(COLUMNS_V1)
    assert set(METRICS_V1) == set(SubScoresV1.names())
