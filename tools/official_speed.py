"""How many times faster than NAVSIM 1.1's own `pdm_score` a group of trajectories is scored here.

    DRIVEFINE_NAVSIM_PYTHON=/path/to/python PYTHONPATH=/path/to/navsim-1.1 python tools/official_speed.py

Makes a dense synthetic world, prepares the same scenes with NAVSIM's metric caching and with ours, and scores
the same trajectories: NAVSIM one per call, as its evaluation does; ours as one group per scene. One core, CPU
time of this run on this machine. Every sub-score is compared on the way. NAVSIM's interpreter runs with this
process's PYTHONPATH, and is looked for in DRIVEFINE_NAVSIM_PYTHON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import SceneFilter, future_poses, load_scenes
from drivefine_agent.errors import DataError
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.scorer import score_v1
from drivefine_agent.scoring.types import SubScoresV1
from drivefine_agent.synthetic.dataset import WorldConfig, make_world

RUNNER = Path(__file__).parents[1] / "tests" / "parity" / "run_official_navsim.py"
INTERPRETER_VARIABLE = "DRIVEFINE_NAVSIM_PYTHON"
TOLERANCE = 1e-9  # of progress and score; the other sub-scores must be equal


@dataclass(frozen=True)
class Comparison:
    """NAVSIM 1.1 and ours on the same scenes and trajectories; seconds of CPU time on one core."""

    official_s: float
    """Median of a call of `pdm_score`, which scores one trajectory."""
    ours_s: float
    """Median over scenes of the time for a group, divided by its size."""
    num_scenes: int
    num_proposals: int
    """Trajectories of a scene's group; NAVSIM scored the first `num_official` of each."""
    num_official: int
    num_tracks: float
    num_polygons: float
    """Medians over the scenes, as counted by NAVSIM."""
    num_unequal: int
    """Trajectories of which a sub-score differs."""

    @property
    def ratio(self) -> float:
        """Trajectories of ours in the time of one of NAVSIM's."""
        return self.official_s / self.ours_s


def compare(
    dataset_root: Path, interpreter: str, num_scenes: int = 8, num_proposals: int = 70, num_official: int = 10
) -> Comparison:
    """Scores perturbed drives of a dataset's test scenes with both.

    Raises:
      DataError: the interpreter cannot run NAVSIM 1.1.
    """
    paths = DatasetPaths.from_root(dataset_root)
    windows = load_scenes(paths.logs("test"), SceneFilter(frame_interval=10))
    windows = windows[:: max(1, len(windows) // num_scenes)][:num_scenes]
    rng = np.random.default_rng(0)
    poses = {window.token: _perturbed(future_poses(window), num_proposals, rng) for window in windows}

    scenes = [build_scoring_scene(w, load_map(paths.maps_root, w.map_name)) for w in windows]
    scores = {scene.token: score_v1(scene, poses[scene.token]) for scene in scenes}  # compiles
    ours = [_seconds(lambda scene=scene: score_v1(scene, poses[scene.token])) for scene in scenes]
    official = _run_official(
        interpreter, paths, {token: group[:num_official] for token, group in poses.items()}
    )
    again = [_seconds(lambda scene=scene: score_v1(scene, poses[scene.token])) for scene in scenes]
    seconds = [value for values in official["seconds"].values() for value in values]
    sizes = np.median(list(official["sizes"].values()), axis=0)
    return Comparison(
        official_s=float(np.median(seconds)),
        ours_s=float(np.median(ours + again)) / num_proposals,
        num_scenes=len(windows),
        num_proposals=num_proposals,
        num_official=num_official,
        num_tracks=float(sizes[0]),
        num_polygons=float(sizes[1]),
        num_unequal=sum(
            not _is_equal(scores[token], row, theirs)
            for token, rows in official["rows"].items()
            for row, theirs in enumerate(rows)
        ),
    )


def _perturbed(poses: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(count, 8, 3) the driver's trajectory at other speeds and with drifts, like a group of samples."""
    speed = rng.uniform(0.6, 1.3, (count, 1, 1))
    drift = rng.normal(0.0, 0.3, (count, 1, 1)) * np.linspace(0.125, 1.0, 8)[None, :, None]
    return poses[None] * speed + drift * np.array([0.0, 1.0, 0.02])


def _seconds(call: Any) -> float:
    """Median CPU time of a call."""
    times = []
    for _ in range(7):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return float(np.median(times))


def _run_official(
    interpreter: str, paths: DatasetPaths, poses: Mapping[str, NDArray[np.float64]]
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        # nuplan-devkit makes a lock folder beside the maps, so it gets a copy.
        maps_root = shutil.copytree(paths.maps_root, Path(folder) / "maps")
        request = {
            "log_dir": str(paths.logs("test")),
            "maps_root": str(maps_root),
            "cache_dir": str(Path(folder) / "metric_cache"),
            "num_history_frames": 4,
            "num_future_frames": 10,
            "trajectories": {token: group.reshape(-1, 24).tolist() for token, group in poses.items()},
        }
        asked, answered = Path(folder) / "request.json", Path(folder) / "response.json"
        asked.write_text(json.dumps(request))
        run = subprocess.run(
            [interpreter, str(RUNNER), str(asked), str(answered)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if run.returncode != 0:
            last_line = (run.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(
                f"the comparison needs an interpreter that runs NAVSIM 1.1, {interpreter} says: {last_line}; "
                f"set {INTERPRETER_VARIABLE}"
            )
        response: dict[str, Any] = json.loads(answered.read_text())
        return response


def _is_equal(ours: SubScoresV1, row: int, theirs: Mapping[str, float]) -> bool:
    """Whether all sub-scores of a trajectory are the same."""
    for name in SubScoresV1.names():
        tolerance = TOLERANCE if name in ("ego_progress", "score") else 0.0
        if abs(float(getattr(ours, name)[row]) - theirs[name]) > tolerance:
            return False
    return True


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=8, help="scenes (default: %(default)s)")
    parser.add_argument("--official", type=int, default=10, help="trajectories NAVSIM scores in each of them")
    parser.add_argument("--dataset", type=Path, help="a dataset with logs and maps (default: a dense world)")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder for the dense world")
    arguments = parser.parse_args()
    root = arguments.dataset or arguments.output / "dense"
    if arguments.dataset is None:
        counts = {"num_train_logs": 0, "num_val_logs": 0, "num_test_logs": 3}
        make_world(WorldConfig(output=str(root), images="none", is_dense=True, num_workers=1, **counts))
    try:
        result = compare(
            root,
            os.environ.get(INTERPRETER_VARIABLE, sys.executable),
            arguments.scenes,
            num_official=arguments.official,
        )
    except DataError as error:
        sys.exit(f"official_speed: {error}")
    print(
        f"{result.num_scenes} scenes (median {result.num_tracks:.0f} tracks, {result.num_polygons:.0f} map "
        f"polygons), {result.num_scenes * result.num_official} trajectories scored by both, "
        f"{result.num_unequal} with unequal sub-scores\n"
        f"NAVSIM 1.1, one per call: {1e3 * result.official_s:.1f} ms; ours, {result.num_proposals} per call: "
        f"{1e6 * result.ours_s:.1f} us each ({1 / result.ours_s:,.0f}/s); {result.ratio:,.0f} x"
    )


if __name__ == "__main__":
    main()
