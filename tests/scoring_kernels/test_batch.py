"""Many scenes at once: the same bits for any batch, order, number and kind of workers."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import SceneFilter, load_scenes
from drivefine_agent.errors import WorkerError
from drivefine_agent.scoring import batch
from drivefine_agent.scoring.batch import ScoringRules, score_many
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.build_v2 import build_scoring_scene_v2
from drivefine_agent.scoring.cache import SceneCache, SceneCacheWriter
from drivefine_agent.scoring.cache_layout import RULES_V1, RULES_V2
from drivefine_agent.scoring.scorer import score_v1
from drivefine_agent.scoring.scorer_v2 import score_v2
from drivefine_agent.scoring.types import ScoringScene

Poses = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def caches(navsim_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SceneCache]:
    windows = load_scenes(navsim_mini / "navsim_logs" / "test", SceneFilter())[::3]
    caches = {}
    for rules, build in ((RULES_V1, build_scoring_scene), (RULES_V2, build_scoring_scene_v2)):
        folder = tmp_path_factory.mktemp(rules)
        with SceneCacheWriter(folder, rules=rules) as writer:
            for window in windows:
                writer.add(build(window, load_map(navsim_mini / "maps", window.map_name)))
        caches[rules] = SceneCache(folder, rules)
    return caches


def proposals(cache: SceneCache) -> Poses:
    """Groups of different sizes, among them none at all."""
    rng = np.random.default_rng(0)
    counts = [0, 1, 7, 40, 3, 12, 5, 9]
    found = {}
    for token, count in zip(cache, counts, strict=False):
        speed = rng.uniform(0.2, 1.6, (count, 1, 1))
        found[token] = cache[token].human_poses * speed + rng.normal(0.0, 0.5, (count, 8, 3))
    return found


def bits(results: Mapping[str, Any], token: str) -> bytes:
    scores = vars(results[token].scores)
    return b"".join(scores[name].tobytes() for name in sorted(scores))


@pytest.mark.parametrize("rules", [RULES_V1, RULES_V2])
@pytest.mark.parametrize("rows_per_task", [1, 5, 256])
def test_results_do_not_depend_on_how_the_work_is_divided(
    caches: dict[str, SceneCache], rules: str, rows_per_task: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = caches[rules]
    poses = proposals(cache)
    score: Any = score_v1 if rules == RULES_V1 else score_v2
    alone = {
        token: [score(cache[token], rows[i : i + 1]) for i in range(len(rows))]
        for token, rows in poses.items()
    }
    monkeypatch.setattr(batch, "ROWS_PER_TASK", rows_per_task)
    shuffled = dict(reversed(poses.items()))
    for given, num_workers in ((poses, 1), (shuffled, 3)):
        results = score_many(cache, given, ScoringRules(rules), num_workers=num_workers)
        assert list(results) == list(given)
        for token, parts in alone.items():
            assert results[token].errors == [None] * len(parts)
            for name in ScoringRules(rules).columns:
                expected = b"".join(getattr(part, name).tobytes() for part in parts)
                assert getattr(results[token].scores, name).tobytes() == expected, name


def test_reactive_traffic_in_threads_is_the_same(caches: dict[str, SceneCache]) -> None:
    cache = caches[RULES_V2]
    poses = {token: rows[:3] for token, rows in proposals(cache).items()}
    rules = ScoringRules(RULES_V2, traffic="reactive")
    one, many = (score_many(cache, poses, rules, num_workers=n) for n in (1, 4))
    for token in poses:
        assert bits(one, token) == bits(many, token)


@pytest.mark.slow
def test_processes_give_the_same_bits(caches: dict[str, SceneCache], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = caches[RULES_V1]
    poses = proposals(cache)
    monkeypatch.setattr(batch, "ROWS_PER_TASK", 16)
    counts: list[int] = []
    threads = score_many(cache, poses, num_workers=2)
    processes = score_many(cache, poses, num_workers=2, kind="processes", on_progress=counts.append)
    for token in poses:
        assert bits(threads, token) == bits(processes, token)
    assert sum(counts) == sum(map(len, poses.values()))
    assert len(counts) > 1


def test_a_bad_scene_or_row_costs_no_other_its_score(caches: dict[str, SceneCache]) -> None:
    cache = caches[RULES_V1]
    first, second = list(cache)[2:4]
    poses = proposals(cache)
    bad = poses[second].copy()
    bad[1, 4, 0] = np.nan
    results = score_many(cache, {first: poses[first], "gone": poses[first], second: bad})
    assert len(results["gone"].errors) == len(poses[first])
    assert all("scene 'gone' is not in the scene cache" in (e or "") for e in results["gone"].errors)
    assert np.isnan(results["gone"].scores.ego_progress).all()
    errors = results[second].errors
    assert "poses must be finite, got nan for x of pose 4" in (errors[1] or "")
    assert errors[:1] + errors[2:] == [None] * (len(bad) - 1)
    whole = score_many(cache, poses)
    assert bits(results, first) == bits(whole, first)
    assert np.isnan(results[second].scores.ego_progress).tolist() == [i == 1 for i in range(len(bad))]


@pytest.mark.parametrize(("asked", "held"), [(RULES_V2, RULES_V1), (RULES_V1, RULES_V2)])
def test_a_scene_of_other_rules_costs_no_other_its_score(
    caches: dict[str, SceneCache], asked: str, held: str
) -> None:
    good, bad = list(caches[asked])[1:3]
    scenes = {good: caches[asked][good], bad: caches[held][bad]}
    poses = {token: scenes[good].human_poses[None] for token in scenes}
    results = score_many(scenes, poses, ScoringRules(asked))
    assert results[good].errors == [None]
    assert f"prepared for the rules '{held}', but is to be scored by '{asked}'" in results[bad].errors[0]
    assert np.isnan(results[bad].scores.ego_progress).all()
    with pytest.raises(ValueError, match=r"navsim_v1.*navsim_v2.*got 'navsim_v3'"):
        ScoringRules("navsim_v3")


class DeadlyScenes(dict[str, ScoringScene]):
    """Kills the process that asks for a scene."""

    def __getitem__(self, token: str) -> ScoringScene:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.slow
def test_a_worker_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "ROWS_PER_TASK", 1)
    poses = {"a": np.zeros((2, 8, 3))}
    with pytest.raises(WorkerError, match=r"one that died .* the scenes from 'a' on"):
        score_many(DeadlyScenes(), poses, num_workers=2, kind="processes")


def test_arguments_are_checked(caches: dict[str, SceneCache]) -> None:
    with pytest.raises(ValueError, match="num_workers must be at least 1"):
        score_many(caches[RULES_V1], {}, num_workers=0)
    assert score_many(caches[RULES_V1], {}) == {}
