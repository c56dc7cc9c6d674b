"""Numbers of a table's rows, worked by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.bootstrap import bootstrap_interval, clustered_interval
from drivefine_agent.reproduction.pages import draw, to_csv, to_markdown
from drivefine_agent.reproduction.results import difference, read_evaluation, seed_means, table_results
from drivefine_agent.reproduction.tables import TABLES, Row, Table, fitted


def results(scores: list[float], valid: list[bool] | None = None, order: int = 1) -> pd.DataFrame:
    """Results of scenes t0, t1, ... with every sub-score equal to the score."""
    frame = pd.DataFrame(
        {"token": [f"t{i}" for i in range(len(scores))], "valid": valid or [True] * len(scores)}
    )
    for column in ("DAC", "PDMS"):
        frame[column] = scores
    return frame.iloc[::order].reset_index(drop=True)


OWN_LOGS = {f"t{i}": f"log{i}" for i in range(9)}


def test_the_gain_is_the_mean_over_scenes_of_the_mean_over_seeds() -> None:
    base = [results([0.2, 0.4]), results([0.4, 0.4], order=-1)]
    row = [results([0.5, 0.4]), results([0.5, 0.6])]
    # t0: (0.5 + 0.5) / 2 - (0.2 + 0.4) / 2 = 0.2; t1: 0.5 - 0.4 = 0.1, whatever the order of the rows.
    interval = difference(row, base, "PDMS", OWN_LOGS)
    assert interval.mean == pytest.approx(0.15)
    # A resample holds one scene twice or both: its mean is 0.1, 0.15 or 0.2.
    assert (interval.low, interval.high) == (pytest.approx(0.1), pytest.approx(0.2))
    assert difference(base, row, "PDMS", OWN_LOGS).mean == pytest.approx(-0.15)


def test_scenes_of_one_log_are_resampled_together() -> None:
    values = [0.0, 0.0, 1.0]
    # Clusters {0, 0} and {1}: resamples are twice the first (mean 0), both (1/3), twice the second (1).
    interval = clustered_interval(values, ["a", "a", "b"])
    assert (interval.mean, interval.low, interval.high) == (pytest.approx(1 / 3), 0.0, 1.0)
    # One cluster for all leaves nothing to resample, and is no proof of anything.
    alone = clustered_interval(values, ["a"] * 3)
    assert (alone.mean, alone.excludes_zero) == (pytest.approx(1 / 3), False)
    assert np.isnan([alone.low, alone.high]).all()
    # One for each is the plain bootstrap.
    rng = np.random.default_rng(0)
    many = rng.normal(size=200)
    single, plain = clustered_interval(many, np.arange(200)), bootstrap_interval(many)
    assert (single.low, single.high) == (pytest.approx(plain.low), pytest.approx(plain.high))
    with pytest.raises(ValueError, match="one for each of the values"):
        clustered_interval(many, ["a"])


def test_a_scene_that_failed_once_leaves_the_comparison_in_pairs() -> None:
    base = [results([0.2, 0.4])]
    row = [results([0.3, float("nan")], valid=[True, False])]
    interval = difference(row, base, "PDMS", OWN_LOGS)
    assert (interval.mean, interval.num_scenes) == (pytest.approx(0.1), 1)
    with pytest.raises(DataError, match="valid for all seeds, got none"):
        difference([results([0.1], valid=[False])], [results([0.1])], "PDMS", OWN_LOGS)
    with pytest.raises(DataError, match="same scenes"):
        difference([results([0.1])], [results([0.1, 0.2])], "PDMS", OWN_LOGS)
    two = [results([0.2, 0.4]), results([0.6, 0.1], valid=[True, False])]
    assert seed_means(two, "PDMS").to_dict() == {"t0": pytest.approx(0.4)}


def test_pages_say_what_was_found_and_what_failed(tmp_path: Path) -> None:
    table = Table(
        "Things",
        ("DAC", "PDMS"),
        (
            Row("first", "sft", paper={"PDMS": 86.7}, x=0, base=None),
            Row("second", "grpo", x=1),
        ),
        kind="line",
        x_label="n",
    )
    rows = [
        [results([0.5, 0.5, 0.5]), results([0.3, 0.3, 0.3])],
        [results([0.7, 0.7, 0.0], valid=[True, True, False]), results([0.5, 0.5, 0.5])],
    ]
    found = table_results(table, rows, ["", "an oracle"], OWN_LOGS)
    # Second row: seeds 0.7 (of two scenes) and 0.5; against 0.5 and 0.3 on t0 and t1: +0.2 on both.
    text = to_markdown("table9", table, found, [7, 8], ["Made by hand."], "It shows nothing.\n")
    assert "| first | 40.0 | 40.0 | 50.0, 30.0 | - |" in text
    assert "| second (an oracle) | 60.0 | 60.0 | 70.0, 50.0 | first: +20.0 [+20.0, +20.0] * |" in text
    assert "| first |  | 86.7 |" in text
    assert "3 held-out scenes, seeds 7, 8, 1 failed scorings" in text
    assert "`by seed` shows it" in text
    assert text.rstrip().endswith("It shows nothing.")
    # A row without a column's numbers, one that the model does not have, and one seed.
    longer = replace(table, left_out=(Row("third", "sft", paper={"PDMS": 90.0}, x=0.5, base=None),))
    nameless = [r.drop(columns="DAC").assign(DAC=float("nan")) for r in rows[0][:1]]
    few = table_results(table, [nameless, rows[1][:1]], ["", ""], OWN_LOGS)
    page = to_markdown("table9", longer, few, [7], [], "")
    assert "| first | - | 50.0 |" in page
    assert "| first |  | 86.7 |\n| third |  | 90.0 |" in page
    assert "one seed cannot show" in page
    saved = tmp_path / "t.csv"
    saved.write_text(to_csv(table, found, [7, 8]))
    frame = pd.read_csv(saved)
    assert frame["PDMS seed 8"].tolist() == [0.3, 0.5]
    assert frame["difference"].tolist()[1] == pytest.approx(0.2)
    assert frame["paper PDMS"].tolist()[0] == 86.7
    timed = tuple(replace(row, latency=("cached", n)) for n, row in enumerate(table.rows))
    shapes = (longer, replace(table, kind="rows"), replace(table, kind="plane"))
    for number, shape in enumerate((*shapes, replace(table, kind="latency", rows=timed))):
        draw(shape, found, tmp_path / f"{number}.png", latency_ms=[3.0, 4.0])
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
    assert "| second | 4.0 |" in to_markdown("f", table, found, [7, 8], [], "", latency_ms=[3.0, 4.0])


def test_scores_of_two_benchmarks_stand_in_one_row(tmp_path: Path) -> None:
    """EP is NAVSIM 2's where both have it; a scene counts where both scored it."""
    one = "token,valid,no_at_fault_collisions,drivable_area_compliance,ego_progress,"
    one += "time_to_collision_within_bound,comfort,driving_direction_compliance,score\n"
    one += "0,a,True,1,1,0.5,1,1,1,0.8\n1,b,False,,,,,,,\n2,average,False,1,1,0.5,1,1,1,0.8\n"
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "results.csv").write_text("," + one)
    two = (
        ",token,valid,no_at_fault_collisions,drivable_area_compliance,driving_direction_compliance,"
        "traffic_light_compliance,ego_progress,time_to_collision_within_bound,lane_keeping,history_comfort,"
        "two_frame_extended_comfort,score\n"
        "0,a,True,1,1,1,1,0.25,1,1,1,,0.6\n1,b,True,1,1,1,1,0.5,1,1,1,,0.7\n"
        "2,average_all_frames,True,1,1,1,1,0.375,1,1,1,,0.65\n"
    )
    (tmp_path / "v2").mkdir()
    (tmp_path / "v2" / "results.csv").write_text(two)
    table = read_evaluation({"navsim_v1": tmp_path / "v1", "navsim_v2": tmp_path / "v2"}, is_draft=False)
    table = table.set_index("token")
    assert table.loc["a", ["PDMS", "EPDMS", "EP", "valid"]].tolist() == [0.8, 0.6, 0.25, True]
    assert not table.loc["b", "valid"]


def test_comparisons_are_with_rows_that_exist() -> None:
    for table in TABLES.values():
        assert table.metric in table.columns
        for number, row in enumerate(table.rows):
            assert row.base is None or (row.base < len(table.rows) and row.base != number)
            assert set(row.paper) <= set(table.columns)


def test_rows_that_a_model_has_no_counterpart_for_are_left_out() -> None:
    rows = (Row("a", "sft", base=None), Row("b", "grpo"), Row("c", "hybrid"), Row("d", "sft", base=2))
    table = fitted(Table("T", ("PDMS",), rows), {"hybrid": "hybrid_coarse"}, ["grpo"])
    assert [(row.title, row.plan, row.base) for row in table.rows] == [
        ("a", "sft", None),
        ("c", "hybrid_coarse", 0),
        ("d", "sft", 1),
    ]
    with pytest.raises(ValueError, match=r"cannot be skipped: \['hybrid'\]"):
        fitted(Table("T", ("PDMS",), rows), {}, ["hybrid"])


def test_best_of_n_is_compared_with_one_sample() -> None:
    rows = TABLES["table1"].rows
    chosen = [row for row in rows if "best_of_6" in row.plan]
    assert len(chosen) == 3
    assert {rows[row.base].plan for row in chosen if row.base is not None} == {"hybrid_sample"}
