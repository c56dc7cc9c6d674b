"""The load campaign at a small size, and what it would notice."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from campaign import Load, broken_rules, run_campaign, steps_of
from process_watch import watch


@pytest.mark.slow
def test_the_steps_of_the_campaign_run_within_their_limits(tmp_path: Path) -> None:
    """Those by NAVSIM 1.1's rules; the others differ in an argument."""
    load = Load(tmp_path, 60, 3, 2, num_tiny_scenes=0, num_reactive_rows=4)
    steps = steps_of(load)[:5]
    results = run_campaign(load, steps)
    assert [result["name"] for result in results] == [step.name for step in steps]
    assert not [result for result in results if result["broken"]]
    assert {result["num_processes"] for result in results} == {1, 4}
    scores = pd.read_parquet(tmp_path / "score_navsim_v1.parquet")
    assert len(scores) == 180
    assert scores["error"].isna().all()
    assert run_campaign(load, steps) == results  # nothing runs again
    assert "| score navsim_v1 | 180 trajectories |" in (tmp_path / "load.md").read_text()


def test_processes_memory_and_open_files_are_seen(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "held = bytearray(80 << 20)\n"
        "files = [open(sys.executable, 'rb') for _ in range(30)]\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1.5)'])\n"
        "child.wait()\n"
        "try:\n"
        "    more = [open(sys.executable, 'rb') for _ in range(40)]\n"
        "except OSError:\n"
        "    sys.exit(7)\n"
    )
    watched = watch([sys.executable, "-c", program], tmp_path / "log", max_open_files=64)
    summary = watched.summary()
    assert summary["exit_code"] == 7, (tmp_path / "log").read_text()
    assert summary["num_processes"] == 2
    assert 80 <= summary["main_mib"] < 200
    assert 30 <= summary["num_open_files"] <= 64


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"exit_code": 1}, ["it ended with exit code 1"]),
        ({"num_processes": 5}, ["5 processes with 2 workers"]),
        ({"tenths": {"main_mib": [1.0, 300.0, *[500.0] * 8]}}, ["main_mib grew from 300 to 500"]),
        ({"tenths": {"main_mib": [1.0, 30.0, *[500.0] * 8]}, "seconds": 9.0}, []),
        ({"tenths": {"main_mib": [1.0, 300.0, *[500.0] * 8]}, "kept_kib": 10.0}, []),
        ({"tenths": {"worker_mib": [0.0, 0.0, 70.0, *[500.0] * 7]}, "kept_kib": 10.0}, []),
        ({"tenths": {"worker_mib": [0.0, 70.0, 80.0, *[500.0] * 7]}}, ["worker_mib grew from 80 to 500"]),
    ],
)
def test_broken_rules_are_named(changed: dict[str, Any], expected: list[str]) -> None:
    good = {
        "count": 10_000,
        "kept_kib": 0.0,
        "exit_code": 0,
        "seconds": 100.0,
        "num_processes": 4,
        "tenths": {"main_mib": [300.0] * 10},
    }
    assert broken_rules({**good, **changed}, num_workers=2) == expected


def test_a_command_that_fails_ends_the_campaign(tmp_path: Path) -> None:
    (tmp_path / "world").write_text("in the way")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("campaign.py")), f"--output={tmp_path}", "--scenes=5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "world: it ended with exit code 1" in done.stderr
    assert "cache" not in done.stdout
