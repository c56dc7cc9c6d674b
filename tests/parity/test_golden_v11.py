"""Every official NAVSIM 1.1 result on the sample dataset, from log files and maps to the score.

`pytest tests/parity/test_golden_v11.py -s` prints the table of differences.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.splits import load_split
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.scorer import Surroundings, score_states, score_v1
from drivefine_agent.scoring.simulate import simulate
from drivefine_agent.scoring.trajectory import proposals_to_reference
from drivefine_agent.scoring.types import PolygonKind, ScoringScene

DISCRETE = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "time_to_collision_within_bound",
    "comfort",
)
# The official pipeline's own two stacks (Python 3.9 and 3.11) differ by up to 2.4e-12 in progress.
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def windows(navsim_mini: Path) -> list[SceneWindow]:
    split = load_split("synth_one_stage", [navsim_mini / "splits"])
    return load_scenes(navsim_mini / "navsim_logs" / split.data_split, split.scene_filter)


@pytest.fixture(scope="module")
def scenes(navsim_mini: Path, windows: list[SceneWindow]) -> dict[str, ScoringScene]:
    return {
        window.token: build_scoring_scene(window, load_map(navsim_mini / "maps", window.map_name))
        for window in windows
    }


@pytest.fixture(scope="module")
def official(goldens: Path) -> pd.DataFrame:
    trajectories = pd.read_parquet(goldens / "trajectories.parquet")
    return trajectories.merge(
        pd.read_parquet(goldens / "pdms_v11.parquet"), on=["token", "trajectory_id"], validate="one_to_one"
    )


def _poses(rows: pd.DataFrame) -> NDArray[np.float64]:
    return np.stack(rows["poses"].to_list()).reshape(-1, 8, 3)


def _ours(scene: ScoringScene, rows: pd.DataFrame) -> pd.DataFrame:
    """Our results, in the columns of the official file."""
    poses = _poses(rows)
    scores = score_v1(scene, poses)
    states = simulate(
        proposals_to_reference(scene.initial_state, scene.timestamp_us, poses), scene.initial_state
    )
    raw = score_states(states, Surroundings.from_scene(scene))
    return pd.DataFrame(
        {
            **{name: getattr(scores, name) for name in (*DISCRETE, "ego_progress", "score")},
            "raw_progress": raw.progress_m,
            "raw_progress_ref": scene.reference_progress,
            "ref_multiplier": scene.reference_multiplier,
            "t_collision": raw.collision_index * 0.1,
            "t_ttc": raw.time_to_collision_index * 0.1,
        },
        index=rows.index,
    )


def _difference(ours: pd.Series, official: pd.Series) -> NDArray[np.float64]:
    """Absolute differences; equal infinities (no collision) differ by 0."""
    a, b = ours.to_numpy(dtype=float), official.to_numpy(dtype=float)
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, np.abs(a - b))


def test_every_official_result_is_reproduced(scenes: dict[str, ScoringScene], official: pd.DataFrame) -> None:
    ours = pd.concat([_ours(scenes[token], rows) for token, rows in official.groupby("token", sort=False)])
    table = pd.DataFrame(
        {
            name: {
                "rows": len(ours),
                "unequal": int((_difference(ours[name], official[name]) > 0).sum()),
                "largest difference": _difference(ours[name], official[name]).max(),
            }
            for name in ours.columns
        }
    ).T
    print(f"\nours minus NAVSIM 1.1, {len(scenes)} scenes\n{table.to_string()}")

    assert len(ours) == 720
    assert (table.loc[list(DISCRETE), "unequal"] == 0).all(), table.to_string()
    assert (table["largest difference"] <= TOLERANCE).all(), table.to_string()


def test_scenes_hold_what_the_official_metric_caches_hold(
    scenes: dict[str, ScoringScene], goldens: Path
) -> None:
    facts = pd.read_parquet(goldens / "scene_facts_v11.parquet").set_index("token")
    assert set(facts.index) == set(scenes)
    for token, scene in scenes.items():
        official = facts.loc[token]
        reference = np.reshape(official["reference_poses"], (51, 3))
        # 1e-8 m: ten steps of a double at UTM magnitudes
        np.testing.assert_allclose(scene.reference_poses, reference, rtol=0, atol=1e-8, err_msg=token)
        centerline = np.reshape(official["centerline"], (-1, 2))
        np.testing.assert_allclose(scene.centerline, centerline, rtol=0, atol=1e-8, err_msg=token)
        assert list(scene.polygon_ids) == list(official["polygon_ids"]), token
        is_lane = np.isin(scene.polygon_kind, [PolygonKind.LANE, PolygonKind.LANE_CONNECTOR])
        route = set(official["route_lane_ids"])
        expected = is_lane & [id_ in route for id_ in scene.polygon_ids]
        np.testing.assert_array_equal(scene.polygon_on_route, expected, err_msg=token)


def test_scene_order_does_not_matter_where_nothing_is_overlapped(
    navsim_mini: Path, windows: list[SceneWindow], scenes: dict[str, ScoringScene]
) -> None:
    """The ordered mode imitates a caching worker of NAVSIM, whose scenes came in this order."""
    memory: set[str] = set()
    for window in windows:
        map_ = load_map(navsim_mini / "maps", window.map_name)
        scene = build_scoring_scene(window, map_, collided_memory=memory)
        np.testing.assert_array_equal(scene.reference_poses, scenes[window.token].reference_poses)
