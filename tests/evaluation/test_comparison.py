import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.comparison import compare, format_comparison, paired_values
from drivefine_agent.evaluation.results_csv import METRICS_V1, read_csv, result_table, write_csv
from drivefine_agent.scoring.types import SubScoresV1

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"


def table(scores: dict[str, float | None]) -> pd.DataFrame:
    """A result table from scores by token; None is a failed scene."""
    values = np.array([np.nan if score is None else score for score in scores.values()])
    columns = {name: np.ones(len(values)) for name in METRICS_V1}
    return result_table(list(scores), SubScoresV1(**{**columns, "score": values}), ~np.isnan(values))


def test_scenes_are_paired_by_token_not_by_row() -> None:
    first, second = table({"a": 0.1, "b": 0.9}), table({"b": 0.8, "a": 0.0})
    own, other = paired_values(first, second, "score")
    assert own.tolist() == [0.1, 0.9]
    assert other.tolist() == [0.0, 0.8]
    (_, summary) = compare({"first": first, "second": second}, base="first")
    assert summary.difference is not None
    assert summary.difference.mean == pytest.approx(-0.1)
    assert (summary.difference.low, summary.difference.high) == pytest.approx((-0.1, -0.1))


def test_a_scene_that_failed_for_one_is_left_out_of_the_pair_and_counted() -> None:
    tables = {"base": table({"a": 0.5, "b": 0.5, "c": 0.5}), "other": table({"a": 0.7, "b": None, "c": 0.7})}
    base, other = compare(tables, base="base")
    assert (base.num_valid, other.num_valid, other.num_scenes) == (3, 2, 3)
    assert other.difference is not None
    assert other.difference.num_scenes == 2
    assert other.difference.mean == pytest.approx(0.2)


def test_different_scenes_are_refused_with_an_example() -> None:
    with pytest.raises(DataError, match=r"'y' lacks 1 of 'x' \['b'\] and has 1 others \['c'\]"):
        compare({"x": table({"a": 0.5, "b": 0.5}), "y": table({"a": 0.5, "c": 0.5})}, base="x")


def test_no_common_valid_scene_is_an_error() -> None:
    with pytest.raises(DataError, match="valid in both tables, got none"):
        compare({"x": table({"a": None, "b": 0.5}), "y": table({"a": 0.5, "b": None})}, base="x")


def test_unknown_names_list_the_known_ones() -> None:
    tables = {"x": table({"a": 0.5})}
    with pytest.raises(ValueError, match=r"one of \['x'\], got 'z'"):
        compare(tables, base="z")
    with pytest.raises(ValueError, match=r"metric must be one of .*'score'.*got 'pdms'"):
        compare(tables, base="x", metric="pdms")


def test_official_results_side_by_side() -> None:
    """Means of the official `average` rows, in points of 100."""
    tables = {
        name: read_csv(GOLDEN / f"v11_pdms_{name}_agent.csv") for name in ("human", "constant_velocity")
    }
    text = format_comparison(compare(tables, base="human"), base="human")
    human, constant_velocity = text.splitlines()[2:]
    assert human.split() == ["human", "24/24", "100.0", "95.8", "95.8", "91.7", "88.0", "100.0", "89.5", "-"]
    assert constant_velocity.split()[:9] == [
        "constant_velocity",
        "24/24",
        "83.3",
        "58.3",
        "83.3",
        "100.0",
        "41.4",
        "66.7",
        "44.0",
    ]
    assert constant_velocity.split()[9] == "-45.5"  # 43.977 - 89.452
    assert constant_velocity.endswith("*")


def run_compare(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "compare.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=None)


def test_command_prints_the_table_and_writes_json(tmp_path: Path) -> None:
    write_csv(tmp_path / "x" / "results.csv", table({"a": 0.5, "b": 0.7}))
    write_csv(tmp_path / "y.csv", table({"a": 0.4, "b": 0.6}))
    done = run_compare(f"x={tmp_path / 'x'}", f"y={tmp_path / 'y.csv'}", "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    assert "-10.0 [-10.0, -10.0] *" in done.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["base"] == "x"
    assert written["agents"][1]["difference"]["mean"] == pytest.approx(-0.1)


def test_command_says_what_is_wrong_without_a_traceback(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", table({"a": 0.5}))
    done = run_compare(f"x={tmp_path / 'x.csv'}", f"y={tmp_path / 'gone.csv'}")
    assert done.returncode != 0
    assert done.stderr.startswith("error: a result CSV must exist")
    assert "Traceback" not in done.stderr
