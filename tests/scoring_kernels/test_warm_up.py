"""After the warm-up, scoring a real scene compiles nothing more."""

from __future__ import annotations

from numba.core.dispatcher import Dispatcher

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import SceneFilter, future_poses, load_scenes
from drivefine_agent.scoring import (
    areas,
    centerline,
    comfort,
    contacts,
    driving_direction,
    footprint,
    lane_keeping,
    nuplan_boxes,
    pdm_closed,
    pdm_corridor,
    point_location,
    progress,
    reactive_paths,
    simulate,
    time_to_collision,
    traffic_lights,
    trajectory,
)
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.build_v2 import build_scoring_scene_v2
from drivefine_agent.scoring.scorer import score_v1
from drivefine_agent.scoring.scorer_v2 import score_v2
from drivefine_agent.scoring.warm_up import warm_up

MODULES = (
    areas,
    centerline,
    comfort,
    contacts,
    driving_direction,
    footprint,
    lane_keeping,
    nuplan_boxes,
    pdm_closed,
    pdm_corridor,
    point_location,
    progress,
    reactive_paths,
    simulate,
    time_to_collision,
    traffic_lights,
    trajectory,
)


def compiled() -> dict[str, int]:
    """How many versions of each kernel there are."""
    return {
        f"{module.__name__}.{name}": len(kernel.signatures)
        for module in MODULES
        for name, kernel in vars(module).items()
        if isinstance(kernel, Dispatcher) and kernel.py_func.__module__ == module.__name__
    }


def test_nothing_is_left_to_compile_for_a_real_scene(navsim_mini):
    warm_up()
    before = compiled()
    window = load_scenes(navsim_mini / "navsim_logs" / "test", SceneFilter(frame_interval=10))[0]
    map_ = load_map(navsim_mini / "maps", window.map_name)
    v1, v2 = build_scoring_scene(window, map_), build_scoring_scene_v2(window, map_)
    poses = future_poses(window, 8)[None]
    score_v1(v1, poses)
    score_v2(v2, poses)
    score_v2(v2, poses, traffic="reactive")
    assert compiled() == before
    assert sum(before.values()) > 10
