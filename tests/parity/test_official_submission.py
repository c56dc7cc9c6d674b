"""A submission of ours in the hands of a real NAVSIM (1.1 or 2.x), and one of its classes in ours.

Skipped where no NAVSIM can be imported; see test_official_navsim.py for DRIVEFINE_NAVSIM_PYTHON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drivefine_agent.data.submission import Submission, TeamInfo, read_submission, write_submission
from drivefine_agent.evaluation.submission_check import WantedTokens, check_submission

INTERPRETER = os.environ.get("DRIVEFINE_NAVSIM_PYTHON", sys.executable)
# Reads our file with NAVSIM's classes, checks it by their rules, and writes one the way its script does.
SCRIPT = """
import json, os, pickle, sys
os.environ.setdefault("NUPLAN_MAPS_ROOT", ".")
from navsim.common.dataclasses import Trajectory
from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling
with open(sys.argv[1], "rb") as file:
    content = pickle.load(file)
(seed,) = content.pop("predictions")
for trajectory in seed.values():
    assert type(trajectory) is Trajectory
    trajectory.__post_init__()
    assert trajectory.trajectory_sampling == TrajectorySampling(time_horizon=4, interval_length=0.5)
poses = {token: trajectory.poses.tolist() for token, trajectory in seed.items()}
print(json.dumps({"poses": poses, "texts": content}))
with open(sys.argv[2], "wb") as file:
    own = {token: Trajectory(trajectory.poses * 2) for token, trajectory in seed.items()}
    pickle.dump({**content, "predictions": [own]}, file)
"""

pytestmark = [pytest.mark.navsim, pytest.mark.slow]


def test_each_reads_what_the_other_wrote(tmp_path: Path) -> None:
    probe = "import os; os.environ.setdefault('NUPLAN_MAPS_ROOT', '.'); import navsim.common.dataclasses"
    probed = subprocess.run([INTERPRETER, "-c", probe], capture_output=True, text=True, check=False)
    if probed.returncode != 0:
        last_line = (probed.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"{INTERPRETER} cannot import NAVSIM ({last_line}); set DRIVEFINE_NAVSIM_PYTHON")

    poses = np.linspace(0.0, 2.0, 24).reshape(8, 3).astype(np.float32)
    team = TeamInfo("T", "A, B", "a@x.org", "I", "C")
    write_submission(tmp_path / "ours.pkl", Submission(team, ({"a" * 16: poses, "b" * 16: -poses},)))
    files = [str(tmp_path / "ours.pkl"), str(tmp_path / "submission.pkl")]
    done = subprocess.run([INTERPRETER, "-c", SCRIPT, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["texts"] == {
        "team_name": "T",
        "authors": "A, B",
        "email": "a@x.org",
        "institution": "I",
        "country / region": "C",
    }
    np.testing.assert_array_equal(seen["poses"]["b" * 16], -poses)

    back = read_submission(files[1])
    assert back.team == team
    np.testing.assert_array_equal(back.predictions[0]["a" * 16], 2 * poses)
    check = check_submission(files[1], WantedTokens("two", ("a" * 16, "b" * 16)))
    assert [
        problem for problem in check.problems if "numpy 1.23" not in problem
    ] == []  # as NAVSIM's numpy is
