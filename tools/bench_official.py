"""Times a real, unmodified NAVSIM (1.1 or 2.2) on the scenes of `make bench`: the other side.

    python tools/bench_official.py REQUEST.json RESPONSE.json

Runs in the interpreter that can import NAVSIM, so it uses nothing of this package and nothing newer than
Python 3.9.

REQUEST: `log_dir`, `maps_root`, `cache_dir` (a scratch folder), `num_history_frames`, `num_future_frames` and
`trajectories`, {token: [[24 floats: (8, 3) row-major], ...]}.
RESPONSE: `version`, and by token `caching_s`, `load_s`, `num_bytes`, `score_s` and `scores` per trajectory.
"""

import argparse
import gc
import json
import lzma
import os
import pickle
import time
from pathlib import Path


def main(request_path: str, response_path: str) -> None:
    """Reads the request, runs and times the official caching and scoring, writes the response."""
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

    grid = TrajectorySampling(num_poses=40, interval_length=0.1)
    pose_grid = TrajectorySampling(time_horizon=4, interval_length=0.5)
    is_2 = hasattr(MetricCacheProcessor, "compute_and_save_metric_cache")
    extra_arguments = ()
    if is_2:
        from navsim.traffic_agents_policies.log_replay_traffic_agents import LogReplayTrafficAgents

        processor = MetricCacheProcessor(request["cache_dir"], True, grid)
        prepare = processor.compute_and_save_metric_cache
        extra_arguments = (LogReplayTrafficAgents(grid),)
    else:
        processor = MetricCacheProcessor(request["cache_dir"], True)
        prepare = processor.compute_metric_cache

    lengths = {key: request[key] for key in ("num_history_frames", "num_future_frames")}
    sensors = SensorConfig.build_no_sensors()
    scene_filter = SceneFilter(frame_interval=1, tokens=list(request["trajectories"]), **lengths)
    loader = SceneLoader(Path(request["log_dir"]), None, scene_filter, sensor_config=sensors)
    simulator, scorer = PDMSimulator(grid), PDMScorer(grid)

    results = {}
    for token, proposals in request["trajectories"].items():
        scene = Scene.from_scene_dict_list(
            loader.scene_frames_dicts[token], None, sensor_config=sensors, **lengths
        )
        scenario = NavSimScenario(scene, map_root=request["maps_root"], map_version="nuplan-maps-v1.0")
        start = time.perf_counter()
        entry = prepare(scenario)
        caching_s = time.perf_counter() - start
        gc.enable()  # NAVSIM's planner switches it off
        start = time.perf_counter()
        with lzma.open(str(entry.file_name), "rb") as file:
            # Written a moment ago by this very process; NAVSIM itself reads it this way.
            metric_cache = pickle.load(file)
        load_s = time.perf_counter() - start
        score_s, scores = [], []
        for proposal in proposals:
            trajectory = Trajectory(np.asarray(proposal, dtype=np.float64).reshape(8, 3), pose_grid)
            start = time.perf_counter()
            result = pdm_score(metric_cache, trajectory, grid, simulator, scorer, *extra_arguments)
            score_s.append(time.perf_counter() - start)
            scores.append(float(_table(result)["pdm_score"].iloc[0] if is_2 else result.score))
        results[token] = {
            "caching_s": caching_s,
            "load_s": load_s,
            "num_bytes": Path(entry.file_name).stat().st_size,
            "score_s": score_s,
            "scores": scores,
        }
    with open(response_path, "w", encoding="utf-8") as file:
        json.dump({"version": "2.2" if is_2 else "1.1", "scenes": results}, file)


def _table(result):
    """The result of 2.2: a DataFrame, alone or the first of a tuple."""
    return result[0] if isinstance(result, tuple) else result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("request", metavar="REQUEST.json")
    parser.add_argument("response", metavar="RESPONSE.json")
    arguments = parser.parse_args()
    main(arguments.request, arguments.response)
