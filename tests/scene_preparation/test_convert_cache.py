"""Official metric caches as scoring scenes, and the report of differences between two scene caches."""

import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.metric_cache import MetricCacheFile, read_metric_cache
from drivefine_agent.data.metric_cache_index import list_metric_caches
from drivefine_agent.data.scenes import SceneFilter, load_scenes
from drivefine_agent.data.second_stage import read_second_stage
from drivefine_agent.errors import DataError, SceneError
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.build_v2 import build_scoring_scene_v2
from drivefine_agent.scoring.cache import SceneCache, SceneCacheWriter
from drivefine_agent.scoring.cache_build import build_scene_cache
from drivefine_agent.scoring.cache_layout import RULES_V1, RULES_V2
from drivefine_agent.scoring.cache_sources import metric_cache_refs
from drivefine_agent.scoring.convert_cache import box_poses, scoring_scene_from_metric_cache
from drivefine_agent.scoring.nuplan_boxes import nuplan_box_corners
from drivefine_agent.scoring.scene_diff import diff_scenes, format_summary
from drivefine_agent.scoring.scorer import score_v1
from drivefine_agent.scoring.scorer_v2 import score_v2
from drivefine_agent.scoring.types import ScoringScene, ScoringSceneV2

ROOT = Path(__file__).parents[2]
V11, V22, SYNTHETIC = "7683c164bbbee212", "a50e813fc265dc31", "d1c765150304875d6"
DISCRETE_V1 = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "time_to_collision_within_bound",
    "comfort",
)
DISCRETE_V2 = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "traffic_light_compliance",
    "time_to_collision_within_bound",
    "lane_keeping",
    "history_comfort",
)
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def folders(goldens: Path) -> Path:
    return goldens / "official_metric_caches"


@pytest.fixture(scope="module")
def caches(folders: Path) -> dict[str, MetricCacheFile]:
    return {
        token: read_metric_cache(path)
        for version in ("v11", "v22", "v22_two_stage")
        for token, path in list_metric_caches(folders / version).items()
    }


@pytest.fixture(scope="module")
def scenes(caches: dict[str, MetricCacheFile], navsim_mini: Path) -> dict[str, ScoringScene]:
    return {
        token: scoring_scene_from_metric_cache(
            cache, load_map(navsim_mini / "maps", cache.map_name) if cache.map_name else None
        )
        for token, cache in caches.items()
    }


@pytest.fixture(scope="module")
def own_scenes(navsim_mini: Path) -> dict[str, ScoringScene]:
    """The same scenes, prepared from logs and maps."""
    found: dict[str, ScoringScene] = {}
    windows = load_scenes(
        navsim_mini / "navsim_logs" / "test", SceneFilter(frame_interval=1, tokens=(V11, V22))
    )
    builders = {V11: build_scoring_scene, V22: build_scoring_scene_v2}
    for window in windows:
        found[window.token] = builders[window.token](window, load_map(navsim_mini / "maps", window.map_name))
    folder = navsim_mini / "navhard_two_stage" / "synthetic_scene_pickles"
    sample = read_second_stage(folder / f"{SYNTHETIC}.pkl")
    found[SYNTHETIC] = build_scoring_scene_v2(sample, load_map(navsim_mini / "maps", sample.map_name))
    return found


def _poses(rows: pd.DataFrame) -> np.ndarray:
    return np.stack(rows["poses"].to_list()).reshape(-1, 8, 3)


def _official(goldens: Path, name: str, token: str) -> pd.DataFrame:
    table = pd.read_parquet(goldens / name).merge(
        pd.read_parquet(goldens / "trajectories.parquet"), on=["token", "trajectory_id"]
    )
    return table[table["token"] == token]


# --- scores of NAVSIM -------------------------------------------------------------------------------------


def test_a_converted_scene_scores_as_navsim_1(scenes: dict[str, ScoringScene], goldens: Path) -> None:
    rows = _official(goldens, "pdms_v11.parquet", V11)
    scores = score_v1(scenes[V11], _poses(rows))
    assert len(rows) == 30
    for name in DISCRETE_V1:
        np.testing.assert_array_equal(getattr(scores, name), rows[name], err_msg=name)
    for name in ("ego_progress", "score"):
        np.testing.assert_allclose(getattr(scores, name), rows[name], rtol=0, atol=TOLERANCE, err_msg=name)
    assert rows["score"].nunique() > 10
    assert scenes[V11].reference_multiplier == rows["ref_multiplier"].iloc[0]


@pytest.mark.parametrize(
    ("policy", "traffic", "is_filtered", "count"),
    [
        ("log_replay", "non_reactive", True, 30),
        ("log_replay", "non_reactive", False, 30),
        ("idm", "reactive", True, 6),
    ],
)
def test_a_converted_scene_scores_as_navsim_2(
    policy: str, traffic: Any, is_filtered: bool, count: int, scenes: dict[str, ScoringScene], goldens: Path
) -> None:
    rows = _official(goldens, "epdms_v22.parquet", V22)
    rows = rows[(rows["policy"] == policy) & (rows["human_filter"] == is_filtered)]
    assert len(rows) == count
    scene = scenes[V22]
    assert isinstance(scene, ScoringSceneV2)
    scores = score_v2(
        scene, _poses(rows), traffic=traffic, human_penalty_filter="true" if is_filtered else "false"
    )
    for name in DISCRETE_V2:
        np.testing.assert_array_equal(getattr(scores, name), rows[name], err_msg=name)
    for name in ("ego_progress", "pdm_score"):
        np.testing.assert_allclose(getattr(scores, name), rows[name], rtol=0, atol=TOLERANCE, err_msg=name)


def test_a_converted_second_stage_scores_as_navsim_2(scenes: dict[str, ScoringScene], goldens: Path) -> None:
    """Its two-stage runs are in reactive traffic, with the filter."""
    table = pd.read_parquet(goldens / "two_stage_v22.parquet")
    rows = table[table["token"] == SYNTHETIC]
    assert len(rows) == 4
    scene = scenes[SYNTHETIC]
    assert isinstance(scene, ScoringSceneV2)
    scores = score_v2(scene, _poses(rows), traffic="reactive", human_penalty_filter="true")
    for name in DISCRETE_V2:
        np.testing.assert_array_equal(getattr(scores, name), rows[name], err_msg=name)
    np.testing.assert_allclose(scores.ego_progress, rows["ego_progress"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("token", [V11, V22, SYNTHETIC])
def test_a_converted_scene_is_that_of_logs_and_maps(
    token: str, scenes: dict[str, ScoringScene], own_scenes: dict[str, ScoringScene]
) -> None:
    differences = diff_scenes(scenes[token], own_scenes[token])
    assert len(differences) >= (20 if token == V11 else 40)
    far = [item for item in differences if item.counts(1e-8)]
    assert not far, far
    unknown = {item.field for item in differences if np.isnan(item.largest)}
    assert unknown == ({"map_name", "human_poses"} if token == V11 else set())


# --- conversion -------------------------------------------------------------------------------------------


def test_poses_are_found_from_corners() -> None:
    poses = np.array([[[3.0, -2.0, 0.3], [1.0, 2.0, -3.0]], [[0.0, 0.0, 3.1], [5.0, 5.0, -1.6]]])
    np.testing.assert_allclose(box_poses(nuplan_box_corners(poses, 4.5, 2.0)), poses, rtol=0, atol=1e-12)
    # by hand: front left, rear left, rear right, front right of a box of 4 x 2 m that looks along y
    corners = np.array([[-1.0, 2.0], [-1.0, -2.0], [1.0, -2.0], [1.0, 2.0]]) + np.array([10.0, 20.0])
    np.testing.assert_allclose(box_poses(corners), [10.0, 20.0, np.pi / 2])


def test_without_a_map_there_is_no_reactive_traffic(
    caches: dict[str, MetricCacheFile], scenes: dict[str, ScoringScene]
) -> None:
    scene = scoring_scene_from_metric_cache(caches[V22])
    assert isinstance(scene, ScoringSceneV2)
    assert scene.traffic is None
    others = [item for item in diff_scenes(scene, scenes[V22]) if not item.largest == 0.0]
    assert [(item.field, item.note) for item in others] == [("traffic", "unknown to the first")]


def test_caches_that_do_not_fit_together_are_refused(caches: dict[str, MetricCacheFile]) -> None:
    cache = caches[V22]
    assert cache.current_objects is not None
    assert cache.history_us is not None
    sample = cache.samples[7]
    moved = replace(
        sample, corners=sample.corners + np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.01]])
    )
    cases = [
        (replace(cache, trajectory_us=cache.trajectory_us + 1), "exactly 0.1 s apart"),
        (replace(cache, centerline=cache.centerline[:1]), "two vertices"),
        (replace(cache, map_kinds=cache.map_kinds + 100), "kinds"),
        (replace(cache, samples=(*cache.samples[:7], moved, *cache.samples[8:])), "sample 7"),
        (replace(cache, tracks=(replace(cache.tracks[0], track_tokens=()),)), "sample 0 must name the same"),
        (replace(cache, history_us=cache.history_us[::-1]), "increase"),
        (
            replace(cache, current_objects=replace(cache.current_objects, track_tokens=("a", "b", "c", "d"))),
            "among the objects",
        ),
    ]
    for broken, message in cases:
        with pytest.raises(SceneError, match=rf"scene '{V22}'.*({message})"):
            scoring_scene_from_metric_cache(broken)


# --- scene caches -----------------------------------------------------------------------------------------


def test_a_folder_of_official_caches_becomes_a_scene_cache(
    folders: Path, navsim_mini: Path, scenes: dict[str, ScoringScene], tmp_path: Path
) -> None:
    maps_root = navsim_mini / "maps"
    refs = metric_cache_refs(folders / "v22", RULES_V2, with_traffic=True)
    result = build_scene_cache(refs, maps_root, tmp_path / "cache", rules=RULES_V2)
    assert (result.num_built, result.num_kept, result.failures) == (1, 0, {})
    loaded = SceneCache(tmp_path / "cache", RULES_V2)[V22]
    assert all(item.largest == 0.0 for item in diff_scenes(loaded, scenes[V22]))
    again = build_scene_cache(refs, maps_root, tmp_path / "cache", rules=RULES_V2)
    assert (again.num_built, again.num_kept) == (0, 1)
    plain = metric_cache_refs(folders / "v22", RULES_V2)
    result = build_scene_cache(plain, None, tmp_path / "cache", rules=RULES_V2)
    assert result.num_built == 1  # other content: no traffic
    scene = SceneCache(tmp_path / "cache", RULES_V2)[V22]
    assert isinstance(scene, ScoringSceneV2)
    assert scene.traffic is None


def test_a_damaged_official_cache_fails_alone(folders: Path, tmp_path: Path) -> None:
    folder = tmp_path / "official"
    shutil.copytree(folders / "v11", folder)
    shutil.rmtree(folder / "metadata")
    for name in ("aaaa", "bbbb"):
        path = folder / "log" / "unknown" / name / "metric_cache.pkl"
        path.parent.mkdir(parents=True)
        path.write_bytes(
            list_metric_caches(folders / "v11")[V11].read_bytes()[: -1 if name == "aaaa" else None]
        )
    result = build_scene_cache(metric_cache_refs(folder, RULES_V1), None, tmp_path / "cache")
    assert result.num_built == 1
    assert set(result.failures) == {"aaaa", "bbbb"}
    assert "truncated" in result.failures["aaaa"]
    assert f"that of '{V11}'" in result.failures["bbbb"]
    assert SceneCache(tmp_path / "cache").tokens == (V11,)


def test_the_version_must_be_that_of_the_rules(folders: Path) -> None:
    with pytest.raises(DataError, match="set benchmark=navsim_v2"):
        metric_cache_refs(folders / "v22", RULES_V1)
    with pytest.raises(DataError, match="set benchmark=navsim_v1"):
        metric_cache_refs(folders / "v11", RULES_V2)


# --- differences ------------------------------------------------------------------------------------------


def _changed(scene: ScoringScene, name: str) -> ScoringScene:
    """The scene with 1e-3 more in the last number of a field, or a flag turned."""
    array = np.array(getattr(scene, name))
    if array.dtype == bool:
        array.flat[-1] = ~array.flat[-1]
    else:
        array.flat[-1] += 1e-3
    return replace(scene, **{name: array if array.ndim else float(array)})


ARRAYS = [
    field.name
    for field in fields(ScoringSceneV2)
    if not field.name.endswith(("offsets", "ids", "tokens", "_name", "_type", "_kind", "_us"))
    and field.name not in ("token", "traffic", "is_synthetic")
]


@pytest.mark.parametrize("name", ARRAYS)
def test_a_change_of_a_millimetre_is_found_in_every_field(name: str, scenes: dict[str, ScoringScene]) -> None:
    scene = scenes[V22]
    assert np.size(getattr(scene, name)) > 0
    differences = diff_scenes(scene, _changed(scene, name))
    found = {item.field: item.largest for item in differences if item.largest > 0}
    size = 1.0 if np.asarray(getattr(scene, name)).dtype == bool else pytest.approx(1e-3, rel=1e-5)
    assert found == {name: size}
    assert not any(item.largest > 0 for item in diff_scenes(scene, scene))


def test_headings_are_compared_around_the_circle(scenes: dict[str, ScoringScene]) -> None:
    scene = scenes[V22]
    turned = scene.reference_poses + np.array([0.0, 0.0, 2 * np.pi])
    differences = {d.field: d.largest for d in diff_scenes(scene, replace(scene, reference_poses=turned))}
    assert differences["reference_poses"] < 1e-12


def test_tracks_are_matched_by_their_tokens(scenes: dict[str, ScoringScene]) -> None:
    scene = scenes[V22]
    assert isinstance(scene, ScoringSceneV2)
    assert scene.track_poses is not None
    assert scene.track_sizes is not None
    plain = replace(scene, traffic=None)
    reordered = replace(
        plain,
        track_tokens=scene.track_tokens[::-1],
        **{
            name: getattr(scene, name)[:, ::-1]
            for name in ("track_corners", "track_center", "track_exists", "track_poses")
        },
        **{
            name: getattr(scene, name)[::-1]
            for name in ("track_is_agent", "track_is_stopped", "track_type", "track_sizes")
        },
        overlaps_at_start=scene.overlaps_at_start[::-1],
        exists_in_frame=scene.exists_in_frame[::-1],
    )
    found = diff_scenes(plain, reordered)
    assert all(item.largest == 0.0 for item in found)
    assert [item.field for item in found if item.note == "other order"] == ["track_tokens"]
    renamed = replace(plain, track_tokens=("new", *scene.track_tokens[1:]))
    (item,) = [item for item in diff_scenes(plain, renamed) if item.largest > 0]
    assert (item.field, item.largest) == ("track_tokens", np.inf)
    assert item.note == "1 only in the first, 1 only in the second"


def test_other_shapes_and_other_scenes(scenes: dict[str, ScoringScene]) -> None:
    scene = scenes[V22]
    shorter = replace(scene, centerline=scene.centerline[:-1])
    (item,) = [item for item in diff_scenes(scene, shorter) if item.largest > 0]
    assert item.field == "centerline"
    assert item.largest == np.inf
    assert "centerline" in format_summary([item], 1e-6)
    with pytest.raises(ValueError, match="one token"):
        diff_scenes(scene, scenes[SYNTHETIC])
    with pytest.raises(ValueError, match="same rules"):
        diff_scenes(scene, replace(scenes[V11], token=V22))


def _write(folder: Path, *scenes: ScoringScene) -> Path:
    with SceneCacheWriter(folder) as writer:
        for scene in scenes:
            writer.add(scene)
    return folder


def _run(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_report_of_differences_has_an_exit_code(scenes: dict[str, ScoringScene], tmp_path: Path) -> None:
    scene = scenes[V11]
    first = _write(tmp_path / "a", scene)
    same = _write(tmp_path / "b", replace(scene, reference_poses=scene.reference_poses + 1e-10))
    other = _write(tmp_path / "c", _changed(scene, "reference_poses"))
    more = _write(tmp_path / "d", scene, replace(scene, token="more"))

    result = _run("diff_scene_caches.py", first, same)
    assert result.returncode == 0, result.stderr
    assert "1 scenes compared, 0 differ" in result.stdout
    result = _run("diff_scene_caches.py", first, other, "--json", tmp_path / "out.json")
    assert result.returncode == 1
    assert f"{V11}: reference_poses 0.001" in result.stdout
    assert '"reference_poses"' in (tmp_path / "out.json").read_text()
    result = _run("diff_scene_caches.py", first, more)
    assert result.returncode == 1
    assert "1 scenes are in the second cache only, e.g. more" in result.stdout
    assert _run("diff_scene_caches.py", first, more, "--common").returncode == 0
    result = _run("diff_scene_caches.py", first, tmp_path / "none")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_the_command_converts_a_folder(folders: Path, navsim_mini: Path, tmp_path: Path) -> None:
    keys = ["progress=false", "num_workers=1", "benchmark=navsim_v2", f"dataset_root={navsim_mini}"]
    source = f"official_metric_cache_path={folders / 'v22_two_stage'}"
    result = _run("build_scene_cache.py", *keys, source, f"metric_cache_path={tmp_path / 'cache'}")
    assert result.returncode == 0, result.stderr
    assert "1 scenes built, 0 kept, 0 could not be prepared" in result.stdout
    scene = SceneCache(tmp_path / "cache", RULES_V2)[SYNTHETIC]
    assert isinstance(scene, ScoringSceneV2)
    assert scene.is_synthetic
    assert scene.traffic is not None

    result = _run("build_scene_cache.py", source, f"metric_cache_path={tmp_path / 'other'}")
    assert result.returncode == 1
    assert "set benchmark=navsim_v2" in result.stderr
    assert "Traceback" not in result.stderr
