"""tools/compare.py on results by NAVSIM 2's rules."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drivefine_agent.evaluation.comparison import paired_values
from drivefine_agent.evaluation.results_csv_v2 import read_one_stage, read_two_stage

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"
HUMAN = GOLDEN / "v22_one_non_reactive_human_agent.csv"
CONSTANT = GOLDEN / "v22_one_non_reactive_constant_velocity_agent.csv"
TWO_STAGE = GOLDEN / "v22_two_cv.csv"


def run_compare(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "compare.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_two_official_one_stage_files(tmp_path: Path) -> None:
    """Means are the official averages, the difference is theirs."""
    done = run_compare(HUMAN, CONSTANT, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    averages = [float(path.read_text().splitlines()[-1].split(",")[-1]) for path in (HUMAN, CONSTANT)]
    base, other = json.loads((tmp_path / "out.json").read_text())["agents"]
    assert [agent["means"]["score"] for agent in (base, other)] == pytest.approx(averages, abs=1e-12)
    assert other["difference"]["mean"] == pytest.approx(averages[1] - averages[0], abs=1e-12)
    assert other["difference"]["low"] < other["difference"]["mean"] < other["difference"]["high"]
    assert "EPDMS" in done.stdout
    assert "paired resamples of the scenes" in done.stdout


def test_comfort_is_compared_where_both_have_it() -> None:
    first, second = read_one_stage(HUMAN), read_one_stage(CONSTANT)
    own, other = paired_values(first, second, "two_frame_extended_comfort")
    assert len(own) == len(other) == 12  # half of the frames have a predecessor
    assert np.isfinite([own, other]).all()


def test_two_stage_files_without_groups_are_compared_stage_by_stage(tmp_path: Path) -> None:
    shutil.copy(TWO_STAGE, tmp_path / "a.csv")
    shutil.copy(TWO_STAGE, tmp_path / "b.csv")
    done = run_compare(tmp_path / "a.csv", tmp_path / "b.csv", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    rows, _ = read_two_stage(TWO_STAGE)
    stages = json.loads((tmp_path / "out.json").read_text())["stages"]
    for number, stage in enumerate(stages, start=1):
        own = rows.loc[rows["stage"] == number, "score"]
        assert stage["unit"] == f"samples of stage {number}, each with the same weight"
        assert stage["agents"][0]["num_scenes"] == len(own)
        assert stage["agents"][0]["means"]["score"] == pytest.approx(own.mean())
        assert stage["agents"][1]["difference"]["mean"] == 0.0


def test_two_stage_folders_are_compared_by_group_over_those_complete_for_both(tmp_path: Path) -> None:
    """Groups of two agents by hand; one of them lacks the second group, so the first and third count."""
    scores = {"a": ("0.2", "0.9", "0.4"), "b": ("0.5", "", "0.5")}
    for name, values in scores.items():
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(TWO_STAGE, folder / "results.csv")
        lines = ["token,valid,previous_token,stage_one,stage_two,score"]
        lines += [f"n{row},{bool(value)},p{row},{value},{value},{value}" for row, value in enumerate(values)]
        (folder / "results_groups.csv").write_text("\n".join(lines) + "\n")
    done = run_compare(f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["unit"] == "mapping groups"
    difference = content["agents"][1]["difference"]
    assert difference["num_scenes"] == 2
    assert difference["mean"] == pytest.approx((0.3 + 0.1) / 2)
    assert (content["agents"][1]["num_valid"], content["agents"][1]["num_scenes"]) == (2, 3)


def test_two_results_in_one_folder_have_their_own_groups(tmp_path: Path) -> None:
    """As results.csv and results_before_refinement.csv of one evaluation."""
    for name, value in (("results", "0.5"), ("results_before_refinement", "0.2")):
        shutil.copy(TWO_STAGE, tmp_path / f"{name}.csv")
        lines = ["token,valid,previous_token,stage_one,stage_two,score"]
        lines += [f"n{row},True,p{row},{value},{value},{value}" for row in range(3)]
        (tmp_path / f"{name}_groups.csv").write_text("\n".join(lines) + "\n")
    files = (f"a={tmp_path / 'results.csv'}", f"b={tmp_path / 'results_before_refinement.csv'}")
    done = run_compare(*files, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    difference = json.loads((tmp_path / "out.json").read_text())["agents"][1]["difference"]
    assert difference["mean"] == pytest.approx(-0.3)


def test_results_of_different_benchmarks_are_refused() -> None:
    done = run_compare(HUMAN, GOLDEN / "v11_pdms_human_agent.csv")
    assert done.returncode != 0
    assert "results of one benchmark can be compared" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_metric_of_another_benchmark_is_named() -> None:
    done = run_compare(HUMAN, CONSTANT, "--metric", "comfort")
    assert done.returncode != 0
    assert "--metric must be one of" in done.stderr
