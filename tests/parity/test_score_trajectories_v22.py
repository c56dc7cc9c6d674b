"""tools/score_trajectories.py by NAVSIM 2's rules: a file in, the official numbers out."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from drivefine_agent.scoring.types import SubScoresV2

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("traffic", "rule", "policy", "is_filtered", "count"),
    [
        ("non_reactive", "true", "log_replay", True, 720),
        ("non_reactive", "false", "log_replay", False, 720),
        ("reactive", "true", "idm", True, 144),
    ],
)
def test_a_file_of_trajectories_scores_as_officially(
    traffic: str,
    rule: str,
    policy: str,
    is_filtered: bool,
    count: int,
    navsim_mini: Path,
    goldens: Path,
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools" / "score_trajectories.py"),
            "benchmark=navsim_v2",
            f"traffic={traffic}",
            f"human_penalty_filter={rule}",
            f"trajectories={goldens / 'trajectories.parquet'}",
            f"output={tmp_path / 'scores.parquet'}",
            "train_test_split=synth_one_stage",
            f"dataset_root={navsim_mini}",
            "progress=false",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    assert list(scores.columns) == ["token", "trajectory_id", "error", *SubScoresV2.names()]
    assert scores["error"].isna().all()
    official = pd.read_parquet(goldens / "epdms_v22.parquet")
    official = official[(official["policy"] == policy) & (official["human_filter"] == is_filtered)]
    keys = ["token", "trajectory_id"]
    pairs = scores.merge(official, on=keys, suffixes=("", "_official"), validate="one_to_one")
    assert len(pairs) == len(official) == count
    for name in SubScoresV2.names():
        limit = 1e-9 if name in ("ego_progress", "pdm_score") else 0.0
        assert (pairs[name] - pairs[f"{name}_official"]).abs().max() <= limit, name
