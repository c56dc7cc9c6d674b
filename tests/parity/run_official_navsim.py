"""Scores given trajectories with a real, unmodified NAVSIM 1.1: the other side of `test_official_navsim.py`.

    python tests/parity/run_official_navsim.py REQUEST.json RESPONSE.json

Runs in the environment where NAVSIM lives, which may be another one than ours (its own pins are Python 3.9),
so it uses nothing of this package and nothing newer than Python 3.9.

REQUEST: `log_dir`, `maps_root`, `cache_dir` (a scratch folder), `num_history_frames`, `num_future_frames` and
`trajectories`, {token: [[24 floats: (8, 3) row-major], ...]}.
RESPONSE: `rows`, {token: [{column: value, ...}, ...]}, in the order of the request.

Each scene gets its own metric-cache processor: NAVSIM's planner remembers the objects that an earlier scene
of the same worker overlapped, which would make the reference depend on the order of the scenes.
"""

import gc
import json
import lzma
import os
import pickle
import sys
from dataclasses import asdict
from pathlib import Path


def main(request_path: str, response_path: str) -> None:
    """Reads the request, runs the official metric caching and scoring, writes the response."""
    with open(request_path, encoding="utf-8") as file:
        request = json.load(file)
    os.environ["NUPLAN_MAPS_ROOT"] = request["maps_root"]  # NAVSIM reads it once, when it is imported

    import numpy as np
    from navsim.common.dataclasses import Scene, SceneFilter, SensorConfig, Trajectory
    from navsim.common.dataloader import SceneLoader
    from navsim.evaluate.pdm_score import pdm_score
    from navsim.planning.metric_caching.metric_cache_processor import MetricCacheProcessor
    from navsim.planning.scenario_builder.navsim_scenario import NavSimScenario
    from navsim.planning.simulation.planner.pdm_planner.scoring.pdm_scorer import PDMScorer
    from navsim.planning.simulation.planner.pdm_planner.simulation.pdm_simulator import PDMSimulator
    from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling

    trajectories = request["trajectories"]
    lengths = {key: request[key] for key in ("num_history_frames", "num_future_frames")}
    sensors = SensorConfig.build_no_sensors()
    scene_filter = SceneFilter(frame_interval=1, tokens=list(trajectories), **lengths)
    loader = SceneLoader(Path(request["log_dir"]), None, scene_filter, sensors)

    simulation_grid = TrajectorySampling(num_poses=40, interval_length=0.1)
    simulator = PDMSimulator(simulation_grid)
    scorer = PDMScorer(simulation_grid)  # its defaults are those of default_scoring_parameters.yaml
    pose_grid = TrajectorySampling(time_horizon=4, interval_length=0.5)

    rows = {}
    for token, proposals in trajectories.items():
        scene = Scene.from_scene_dict_list(
            loader.scene_frames_dicts[token], None, sensor_config=sensors, **lengths
        )
        scenario = NavSimScenario(scene, map_root=request["maps_root"], map_version="nuplan-maps-v1.0")
        processor = MetricCacheProcessor(request["cache_dir"], force_feature_computation=True)
        entry = processor.compute_metric_cache(scenario)
        gc.enable()  # NAVSIM's planner switches it off
        with lzma.open(entry.file_name, "rb") as file:
            metric_cache = pickle.load(file)
        rows[token] = []
        for proposal in proposals:
            trajectory = Trajectory(np.asarray(proposal, dtype=np.float64).reshape(8, 3), pose_grid)
            result = pdm_score(metric_cache, trajectory, simulation_grid, simulator, scorer)
            rows[token].append({name: float(value) for name, value in asdict(result).items()})

    with open(response_path, "w", encoding="utf-8") as file:
        json.dump({"rows": rows}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
