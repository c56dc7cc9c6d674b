"""Every official NAVSIM 2.2 result of single scenes on the sample dataset, from logs and maps to the score.

`pytest tests/parity/test_golden_v22.py -s` prints the table of differences.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import load_scenes
from drivefine_agent.data.splits import load_split
from drivefine_agent.scoring.build_v2 import build_scoring_scene_v2
from drivefine_agent.scoring.scorer_v2 import score_v2
from drivefine_agent.scoring.types import ScoringSceneV2

DISCRETE = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "traffic_light_compliance",
    "time_to_collision_within_bound",
    "lane_keeping",
    "history_comfort",
    "multiplicative_metrics_prod",
)
CONTINUOUS = ("ego_progress", "pdm_score")
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def scenes(navsim_mini: Path) -> dict[str, ScoringSceneV2]:
    split = load_split("synth_one_stage", [navsim_mini / "splits"])
    windows = load_scenes(navsim_mini / "navsim_logs" / split.data_split, split.scene_filter)
    return {
        window.token: build_scoring_scene_v2(window, load_map(navsim_mini / "maps", window.map_name))
        for window in windows
    }


@pytest.fixture(scope="module")
def official(goldens: Path) -> pd.DataFrame:
    trajectories = pd.read_parquet(goldens / "trajectories.parquet")
    return pd.read_parquet(goldens / "epdms_v22.parquet").merge(
        trajectories, on=["token", "trajectory_id"], validate="many_to_one"
    )


@pytest.mark.parametrize(
    ("policy", "traffic", "is_filtered", "count"),
    [
        ("log_replay", "non_reactive", True, 720),
        ("log_replay", "non_reactive", False, 720),
        ("idm", "reactive", None, 144),
    ],
)
def test_every_official_result_is_reproduced(
    scenes: dict[str, ScoringSceneV2],
    official: pd.DataFrame,
    policy: str,
    traffic: str,
    is_filtered: bool | None,
    count: int,
) -> None:
    rows = official[official["policy"] == policy]
    if is_filtered is not None:
        rows = rows[rows["human_filter"] == is_filtered]
    assert len(rows) == count
    worst = dict.fromkeys((*DISCRETE, *CONTINUOUS, "weighted_metrics"), 0.0)
    for (token, rule), group in rows.groupby(["token", "human_filter"], sort=False):
        poses = np.stack(group["poses"].to_list()).reshape(-1, 8, 3)
        ours = score_v2(
            scenes[token], poses, traffic=traffic, human_penalty_filter="true" if rule else "false"
        )
        for name in (*DISCRETE, *CONTINUOUS):
            difference = np.abs(getattr(ours, name) - group[name].to_numpy())
            worst[name] = max(worst[name], difference.max())
        weighted = np.stack(group["weighted_metrics"].to_list())[:, :4]
        worst["weighted_metrics"] = max(
            worst["weighted_metrics"], np.abs(ours.weighted_metrics - weighted).max()
        )
    print(f"\n{policy}, human filter {is_filtered}: {count} rows; largest differences {worst}")
    assert all(worst[name] == 0.0 for name in DISCRETE), worst
    assert all(worst[name] <= TOLERANCE for name in worst), worst


def test_the_filter_and_the_traffic_matter_in_these_rows(official: pd.DataFrame) -> None:
    """Otherwise the comparison above could not find an error in either."""
    keys = ["token", "trajectory_id"]
    replayed = official[official["policy"] == "log_replay"]
    lifted = replayed[replayed["human_filter"]].merge(replayed[~replayed["human_filter"]], on=keys)
    assert (lifted["lane_keeping_x"] != lifted["lane_keeping_y"]).any() or (
        lifted["multiplicative_metrics_prod_x"] != lifted["multiplicative_metrics_prod_y"]
    ).any()
    reactive = official[official["policy"] == "idm"].merge(replayed, on=[*keys, "human_filter"])
    assert (reactive["no_at_fault_collisions_x"] != reactive["no_at_fault_collisions_y"]).any()
