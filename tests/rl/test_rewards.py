"""Rewards against the scorer itself; what cannot be scored is masked and counted, and workers may die."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.scoring.cache import SceneCache, finish_cache
from drivefine_agent.scoring.scorer import score_v1
from rl.config import RewardConfig
from rl.ray_rewards import RayScorer, import_ray
from rl.reward_pool import MAX_ROWS, PoolScorer
from rl.rewards import (
    SUB_SCORES,
    RewardError,
    RewardScorer,
    Scores,
    reward_scorer,
    scorable_scenes,
    score_scene,
    weighted_score,
)
from rl.scorer_rollouts import scored

Array = NDArray[np.float64]
DIES, HANGS, RAISES, DIES_ONCE = 1e6, 2e6, 3e6, 4e6
MARK = "DRIVEFINE_TEST_MARK"  # names a file that says that a worker has died
"""First x [m] of a trajectory with which the scorers below misbehave."""


@pytest.fixture(scope="module")
def cache(scene_cache: Path) -> SceneCache:
    return SceneCache(scene_cache)


@pytest.fixture
def poses(cache: SceneCache) -> Array:
    """(B, 3, 8, 3): as driven, at half the speed, standing."""
    human = np.stack([np.asarray(cache[token].human_poses) for token in cache.tokens])
    return np.stack([human, 0.5 * human, 0.0 * human], axis=1)


def _scored(scorer: RewardScorer, tokens: Any, poses: Array) -> Scores:
    return scorer.collect(scorer.submit(tokens, poses))


def _in_process(folder: Path, config: RewardConfig | None = None) -> RewardScorer:
    return reward_scorer(config or RewardConfig(), folder)


# ---------------------------------------------------------------------------------------------- weights


def test_with_the_metrics_weights_the_reward_is_its_score_to_the_last_bit(
    cache: SceneCache, scene_cache: Path, poses: Array
) -> None:
    got = _scored(_in_process(scene_cache), cache.tokens, poses)
    expected = np.stack([score_v1(cache[t], p).score for t, p in zip(cache.tokens, poses, strict=True)])
    np.testing.assert_array_equal(got.rewards, expected)
    assert got.is_valid.all()
    assert got.reasons == ()
    assert len(np.unique(got.rewards)) > 2
    assert SUB_SCORES[-1] == "score"
    np.testing.assert_array_equal(got.sub_scores[..., -1], expected)


def test_weights_change_the_mean_of_the_sub_scores() -> None:
    values = {name: 1.0 for name in SUB_SCORES}
    values |= {"ego_progress": 0.5, "comfort": 0.0, "no_at_fault_collisions": 0.5}
    row = np.array([values[name] for name in SUB_SCORES])
    default = weighted_score(row, RewardConfig().weights)
    assert default == pytest.approx(0.5 * (5 * 0.5 + 5 * 1.0 + 2 * 0.0) / 12)
    other = weighted_score(row, RewardConfig(10.0, 5.0, 0.0).weights)
    assert other == pytest.approx(0.5 * (10 * 0.5 + 5 * 1.0) / 15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"progress_weight": -1.0}, "must not be negative"),
        ({"progress_weight": 0.0, "time_to_collision_weight": 0.0, "comfort_weight": 0.0}, "nor all zero"),
        ({"comfort_weight": float("nan")}, "reward.weights"),
        ({"num_workers": -1}, "num_workers"),
        ({"timeout_s": 0.0}, "must be positive"),
        ({"max_failures_in_a_row": 0}, "at least 1"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig(**change)


# ------------------------------------------------------------------------------------- failures in a scene


def test_a_bad_trajectory_is_masked_and_costs_no_other_its_reward(
    cache: SceneCache, scene_cache: Path, poses: Array
) -> None:
    scorer = _in_process(scene_cache)
    whole = _scored(scorer, cache.tokens, poses)
    poses[1, 2, 3, 0] = np.nan
    got = _scored(scorer, cache.tokens, poses)
    expected = np.ones((4, 3), dtype=bool)
    expected[1, 2] = False
    np.testing.assert_array_equal(got.is_valid, expected)
    assert np.isnan(got.rewards[1, 2])  # and not 0
    assert len(got.reasons) == 1
    assert "row 2" in got.reasons[0]
    np.testing.assert_array_equal(got.rewards[got.is_valid], whole.rewards[got.is_valid])
    values, is_valid = got.tensors(torch.device("cpu"))
    assert is_valid.tolist() == expected.tolist()
    assert values.isfinite().all()


def test_an_unknown_scene_is_masked_as_a_whole(cache: SceneCache, scene_cache: Path, poses: Array) -> None:
    got = _scored(_in_process(scene_cache), [*cache.tokens[:3], "nowhere"], poses)
    assert got.is_valid.sum(1).tolist() == [3, 3, 3, 0]
    assert "nowhere" in got.reasons[0]


def test_first_trajectories_of_scores(cache: SceneCache, scene_cache: Path, poses: Array) -> None:
    got = _scored(_in_process(scene_cache), cache.tokens, poses)
    np.testing.assert_array_equal(got.first(2).rewards, got.rewards[:, :2])
    assert got.first(2).sub_scores.shape == (4, 2, len(SUB_SCORES))


def test_masked_trajectories_are_logged_with_a_reason(
    cache: SceneCache, scene_cache: Path, poses: Array, caplog: pytest.LogCaptureFixture
) -> None:
    poses[1, 2, 3, 0] = np.nan
    _scored(_in_process(scene_cache), cache.tokens, poses)
    assert "1 of 12 trajectories have no reward" in caplog.text
    assert "row 2" in caplog.text


def test_missing_scenes_are_counted_named_and_the_tool_is_told(cache: SceneCache) -> None:
    assert scorable_scenes(cache, cache.tokens, "split").tolist() == [0, 1, 2, 3]
    missing = [f"missing{i}" for i in range(7)]
    with pytest.raises(DataError) as error:
        scorable_scenes(cache, [*cache.tokens, *missing], "split")
    message = str(error.value)
    assert f"7 of 11 are not in {cache.folder}" in message
    assert "missing0, missing1, missing2, missing3, missing4, ..." in message
    assert "missing5" not in message
    assert "python tools/build_scene_cache.py train_test_split=split" in message


def test_scenes_whose_preparation_failed_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finish_cache(tmp_path, {"broken": "no route"})
    assert scorable_scenes(SceneCache(tmp_path), ["broken"], "split").tolist() == []
    assert "1 of 1 scenes are left out" in caplog.text
    assert "no route" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_folder_without_cache_is_an_error_at_once(tmp_path: Path, num_workers: int) -> None:
    with pytest.raises(DataError, match="nowhere"):
        reward_scorer(RewardConfig(num_workers=num_workers), tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------- pool


def score_first_x(cache: SceneCache, token: str, poses: Array) -> tuple[Array, list[str]]:
    """In a worker: every sub-score is the first x; misbehaves where that says so."""
    first = poses[:, 0, 0]
    if (first == DIES).any():
        os.kill(os.getpid(), signal.SIGKILL)
    if (first == DIES_ONCE).any() and not (mark := Path(os.environ[MARK])).exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if (first == HANGS).any():
        time.sleep(3600)
    if (first == RAISES).any():
        raise AssertionError("a bug in the scorer")
    return np.repeat(first[:, None], len(SUB_SCORES), axis=1), []


def _poses(*first_x: list[float]) -> Array:
    """(B, P, 8, 3) trajectories by the first x, in B scenes."""
    poses = np.zeros((len(first_x), len(first_x[0]), 8, 3))
    poses[:, :, 0, 0] = first_x
    return poses


def _reward(x: float) -> float:
    """NC x DAC x mean, all of them x."""
    return x**3


@pytest.fixture
def pools(scene_cache: Path) -> Iterator[Any]:
    """Makes pools and closes them."""
    opened: list[PoolScorer] = []

    def make(**config: Any) -> PoolScorer:
        opened.append(PoolScorer(RewardConfig(**({"num_workers": 1} | config)), scene_cache, score_first_x))
        return opened[-1]

    yield make
    for pool in opened:
        pool.close()


@pytest.fixture(scope="module")
def shared_pool(scene_cache: Path) -> Iterator[PoolScorer]:
    """One worker for several tests: each new one takes seconds to start."""
    config = RewardConfig(num_workers=1, timeout_s=2.0, max_failures_in_a_row=2)
    with PoolScorer(config, scene_cache, score_first_x) as pool:
        yield pool


def test_the_pool_gives_what_this_process_gives(cache: SceneCache, scene_cache: Path, poses: Array) -> None:
    poses[2, 0, 0, 1] = np.inf
    expected = _scored(_in_process(scene_cache), cache.tokens, poses)
    with reward_scorer(RewardConfig(num_workers=2), scene_cache) as pool:
        tickets = [pool.submit(cache.tokens, poses), pool.submit(cache.tokens[:1], poses[:1, 1:])]
        second, first = pool.collect(tickets[1]), pool.collect(tickets[0])
    np.testing.assert_array_equal(first.sub_scores, expected.sub_scores)
    np.testing.assert_array_equal(first.rewards, expected.rewards)
    assert first.reasons == expected.reasons
    np.testing.assert_array_equal(second.rewards, expected.rewards[:1, 1:])


def test_many_trajectories_of_a_scene_stay_in_order(shared_pool: PoolScorer) -> None:
    x = [i / 1000 for i in range(2 * MAX_ROWS + 7)]
    got = _scored(shared_pool, ["a"], _poses(x))
    np.testing.assert_allclose(got.rewards[0], [_reward(value) for value in x])


def test_nothing_to_score_is_no_problem(shared_pool: PoolScorer) -> None:
    assert _scored(shared_pool, ["a"], np.zeros((1, 0, 8, 3))).rewards.shape == (1, 0)


@pytest.mark.slow
def test_lost_workers_cost_their_own_scenes_only_and_the_run_goes_on(shared_pool: PoolScorer) -> None:
    """A scorer that is killed, one that has a bug and one that hangs; never two in a row."""
    before = shared_pool.process_ids
    first_x = [[1.0, 0.5], [0.5, DIES], [0.0, 1.0], [RAISES, 1.0], [0.5, 1.0], [HANGS, 0.5], [1.0, 1.0]]
    got = _scored(shared_pool, list("abcdefg"), _poses(*first_x))
    r, nan = _reward(0.5), np.nan
    expected = [[1.0, r], [nan, nan], [0.0, 1.0], [nan, nan], [r, 1.0], [nan, nan], [1.0, 1.0]]
    np.testing.assert_array_equal(got.rewards, expected)
    assert [bool(valid) for valid in got.is_valid[:, 0]] == [True, False, True, False, True, False, True]
    killed, buggy, hung = got.reasons
    assert killed == "a scoring process died with exit code -9 at scene 'b'"
    assert buggy.endswith("at scene 'd'")  # its traceback may take longer than the time-out
    assert hung == "a scoring process did not score a scene in time and was killed at scene 'f'"
    assert shared_pool.num_lost_workers == 3
    assert shared_pool.process_ids != before


def test_an_idle_worker_that_is_killed_is_replaced_and_nothing_is_lost(shared_pool: PoolScorer) -> None:
    _scored(shared_pool, ["a"], _poses([1.0]))
    lost = shared_pool.num_lost_workers
    os.kill(shared_pool.process_ids[0], signal.SIGKILL)
    deadline = time.monotonic() + 20
    while shared_pool.num_lost_workers == lost:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert _scored(shared_pool, ["a"], _poses([0.5])).rewards.tolist() == [[_reward(0.5)]]


def test_rollouts_of_a_lost_process_are_scored_once_more(
    shared_pool: PoolScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written to a file: a process that was killed once must not be seen there for ever."""
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    with PoolScorer(RewardConfig(num_workers=1), shared_pool._arguments[0], score_first_x) as pool:
        got = scored(pool, ["a", "b"], _poses([DIES_ONCE], [0.5]))
        assert got.is_valid.all()
        assert pool.num_lost_workers == 1
        got = scored(pool, ["a", "b"], _poses([DIES], [0.5]))
        np.testing.assert_array_equal(got.rewards, [[np.nan], [_reward(0.5)]])


PARENT = """
import sys, time
from pathlib import Path
from rl.config import RewardConfig
from rl.reward_pool import PoolScorer
from test_rewards import HANGS, _poses, score_first_x
if __name__ == "__main__":
    pool = PoolScorer(RewardConfig(num_workers=1), Path(sys.argv[1]), score_first_x)
    pool.submit(["a"], _poses([HANGS]))
    time.sleep(3)  # the worker has the task
    print(pool.process_ids[0], flush=True)
    time.sleep(600)
"""


def test_a_worker_that_hangs_ends_with_its_killed_parent(scene_cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    here = Path(__file__)
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}:{here.parents[2]}"}
    command = [sys.executable, str(script), str(scene_cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        parent.kill()
    deadline = time.monotonic() + 10.0
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_too_many_failures_in_a_row_end_the_run(pools: Any) -> None:
    pool = pools(max_failures_in_a_row=1)
    with pytest.raises(RewardError, match=r"1 scoring processes in a row failed.*at scene 'b'"):
        _scored(pool, ["a", "b", "c"], _poses([1.0], [DIES], [1.0]))
    with pytest.raises(RewardError):
        _scored(pool, ["c"], _poses([1.0]))  # and does not hang


def test_workers_that_do_not_start_end_the_run(pools: Any) -> None:
    pool = pools(start_timeout_s=0.01, max_failures_in_a_row=3)
    with pytest.raises(RewardError, match=r"3 scoring processes in a row failed, the last: .* did not start"):
        _scored(pool, ["a"], _poses([1.0]))


def test_closing_ends_busy_workers_and_may_be_repeated(pools: Any) -> None:
    pool = pools()
    _scored(pool, ["a"], _poses([1.0]))
    pool.submit(["a"], _poses([HANGS]))
    process_ids, begin = pool.process_ids, time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - begin < 5
    for process_id in process_ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)


def test_a_scene_count_that_does_not_fit_is_refused(scene_cache: Path) -> None:
    with pytest.raises(ValueError, match="expected trajectories of 2 scenes"):
        _in_process(scene_cache).submit(["a", "b"], _poses([1.0]))


# -------------------------------------------------------------------------------------------------- Ray


def test_ray_gives_what_this_process_gives(cache: SceneCache, scene_cache: Path, poses: Array) -> None:
    pytest.importorskip("ray", reason="Ray is an optional dependency and not installed")
    poses[2, 0, 0, 1] = np.inf
    expected = _scored(_in_process(scene_cache), cache.tokens, poses)
    with reward_scorer(RewardConfig(backend="ray", num_workers=2), scene_cache) as scorer:
        got = _scored(scorer, cache.tokens, poses)
    np.testing.assert_array_equal(got.sub_scores, expected.sub_scores)
    assert got.reasons == expected.reasons


@pytest.mark.slow
def test_a_ray_task_that_dies_or_hangs_has_no_reward(cache: SceneCache, scene_cache: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an optional dependency and not installed")
    deadly, slow, *good = cache.tokens

    def score(folder: str, token: str, poses: Array) -> Any:
        if token == deadly:
            os._exit(1)
        if token == slow:
            time.sleep(600)
        return score_scene(SceneCache(folder), token, poses)

    tokens = [good[0], deadly, slow, *good[1:]]
    poses = np.stack([cache[token].human_poses for token in tokens])[:, None]
    config = RewardConfig(backend="ray", num_workers=2, timeout_s=15.0, start_timeout_s=60.0)
    with RayScorer(config, scene_cache, score) as scorer:
        got = _scored(scorer, tokens, poses)
    assert got.is_valid[:, 0].tolist() == [token in good for token in tokens]
    assert len(got.reasons) == 2
    assert repr(deadly) in got.reasons[0]
    assert repr(slow) in got.reasons[1]


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_error_is_one_made_for_people() -> None:
    with pytest.raises(DriveFineError, match=r"pip install ray, or set reward\.backend=processes"):
        import_ray()
