"""Training of a learned scorer, and what reinforcement learning does with it, on a debug model."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drivefine_agent.data.folder_lock import FolderLock
from drivefine_agent.errors import DataError
from drivefine_agent.learned_scorer import load_head_for
from drivefine_agent.scoring.batch import score_rows
from drivefine_agent.scoring.cache import SceneCache
from drivefine_agent.tokenizer import ActionTokenizer
from drivefine_agent.training.from_mapping import from_mapping
from drivefine_agent.training.rollouts import (
    SUB_SCORES,
    Rollouts,
    read_rollouts,
    remove_parts_of_ranks_from,
    step_part_path,
    write_part,
)
from rl import scorer_rollouts, train_grpo, train_hybrid
from rl.config import RewardConfig, TrainGRPOConfig, TrainHybridConfig
from rl.monitors import agreement_scalars
from rl.objectives import group_advantages
from rl.rewards import InProcessScorer, Scores

_spec = importlib.util.spec_from_file_location(
    "train_scorer", Path(__file__).parents[2] / "tools" / "train_scorer.py"
)
assert _spec is not None
assert _spec.loader is not None
train_scorer = importlib.util.module_from_spec(_spec)
sys.modules["train_scorer"] = train_scorer  # where its dataclasses look for their types
_spec.loader.exec_module(train_scorer)

SPLIT = "synth_one_stage"
NUM_SCENES = 4
CONSENT = {"allow_test_split": True, "i_train_on_test_tokens_of": SPLIT}


@pytest.fixture
def settings(image_dataset: Path, scene_cache: Path, start: Path, tmp_path: Path) -> dict[str, Any]:
    """Ten candidates of each of four scenes, three steps."""
    return {
        "output_dir": str(tmp_path / "scorer_run"),
        "checkpoint_path": str(start),
        "metric_cache_path": str(scene_cache),
        "dataset_root": str(image_dataset),
        "train_test_split": SPLIT,
        "validation_split": SPLIT,
        **CONSENT,
        "max_scenes": NUM_SCENES,
        "max_validation_scenes": NUM_SCENES,
        "tile_cache_path": str(tmp_path.parent / "tiles"),
        "num_threads": 1,
        "candidates": {
            "temperatures": (1.0,),
            "num_samples": 3,
            "num_spoilt": 3,
            "num_denoising_steps": 4,
        },
        "head": {"slot_width": 4, "width": 8, "num_epochs": 3, "batch_size": 4, "num_candidates": 6},
    }


def run(settings: dict[str, Any]) -> dict[str, Any]:
    return train_scorer.train(from_mapping(train_scorer.TrainScorerConfig, settings))


def parts_of(settings: dict[str, Any]) -> dict[str, bytes]:
    folder = Path(settings["output_dir"]) / "rollouts" / SPLIT
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}


def weights_of(settings: dict[str, Any]) -> bytes:
    return (Path(settings["output_dir"]) / "scorer" / "model.safetensors").read_bytes()


def test_a_stopped_run_ends_with_the_same_rollouts_and_the_same_scorer(
    settings: dict[str, Any],
    start: Path,
    scene_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scorer_rollouts, "SCENES_PER_PART", 2)
    planner_before = (start / "model.safetensors").read_bytes()
    quality = run(settings)
    assert sorted(parts_of(settings)) == ["part-00000.parquet", "part-00001.parquet"]
    assert quality["num_candidates"] == NUM_SCENES * 10
    assert json.loads((tmp_path / "scorer_run" / "scorer_quality.json").read_text()) == quality
    assert "mean absolute error" in (tmp_path / "scorer_run" / "scorer_quality.md").read_text()

    # True sub-scores, of the candidates that the rows name, by an own call of the scorer.
    head = load_head_for(Path(settings["output_dir"]) / "scorer", start)
    assert head.config.sub_scores == SUB_SCORES[:-1]
    rollouts = read_rollouts(tmp_path / "scorer_run" / "rollouts" / SPLIT)
    assert rollouts.kinds[:10].tolist() == ["generated"] * 3 + ["refined"] * 3 + ["human"] + ["spoilt"] * 3
    own = rollouts.rows(rollouts.tokens == rollouts.tokens[0])
    spec = train_scorer.Planner.from_pretrained(start).model.config.action_spec
    scored = score_rows(SceneCache(scene_cache), own.tokens[0], ActionTokenizer(spec).decode(own.actions))
    np.testing.assert_array_equal(own.scores, scored.scores.score)
    assert len(np.unique(own.scores)) > 1

    # Stopped while the second part is scored, then started again.
    other = settings | {"output_dir": str(tmp_path / "other")}
    collect, calls = InProcessScorer._collect, []

    def stopping(self: InProcessScorer, ticket: int) -> Any:
        calls.append(ticket)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return collect(self, ticket)

    monkeypatch.setattr(InProcessScorer, "_collect", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(other)
    assert sorted(parts_of(other)) == ["part-00000.parquet"]
    monkeypatch.setattr(InProcessScorer, "_collect", collect)
    run(other)
    assert parts_of(other) == parts_of(settings)
    assert weights_of(other) == weights_of(settings)
    assert (start / "model.safetensors").read_bytes() == planner_before

    # Scenes that were prepared from other logs since would give other scores.
    with monkeypatch.context() as other_logs:
        other_logs.setattr(SceneCache, "fingerprint", lambda cache, token: 1)
        with pytest.raises(DataError, match="logs_and_maps_sha256"):
            run(settings)

    # States computed when they are asked for: the same candidates, not rounded to half precision.
    uncached = {"head": settings["head"] | {"states_cache_gb": 0.0}, "output_dir": str(tmp_path / "third")}
    assert run(settings | uncached)["ranking"]["mean_absolute_error"] == pytest.approx(
        quality["ranking"]["mean_absolute_error"], abs=0.01
    )
    other_planner = {"candidates": settings["candidates"] | {"num_spoilt": 2}}
    with pytest.raises(DataError, match=r"candidates\.num_spoilt: 3 -> 2"):
        run(settings | other_planner)


def test_a_folder_in_which_another_run_works_is_refused(settings: dict[str, Any]) -> None:
    with FolderLock(settings["output_dir"]) as lock:
        with pytest.raises(DataError, match="one process at a time"):
            run(settings)
        assert [path.name for path in lock.folder.iterdir()] == [".lock"]


def test_what_cannot_be_scored_is_left_out_and_never_zero(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = InProcessScorer._collect

    def failing(self: InProcessScorer, ticket: int) -> Any:
        scored = collect(self, ticket)
        for scores, reasons in scored:
            scores[2] = np.nan
            reasons.append("no reason at all")
        return scored

    monkeypatch.setattr(InProcessScorer, "_collect", failing)
    quality = run(settings)
    assert quality["num_candidates"] == NUM_SCENES * 9
    rollouts = read_rollouts(Path(settings["output_dir"]) / "rollouts" / SPLIT)
    assert (~rollouts.is_valid).sum() == NUM_SCENES
    assert np.isnan(rollouts.sub_scores[2]).all()


# ------------------------------------------------------------------------------------ as a part of the reward


def test_the_mixed_reward_by_hand() -> None:
    """0.5 + 0.2 x 0.4 and 1 + 0.2 x 0.9; an unknown reward stays unknown, whatever is predicted."""
    scores = Scores(
        rewards=np.array([[0.5, 1.0, np.nan]]),
        sub_scores=np.zeros((1, 3, 7)),
        reasons=(),
        predicted=np.array([[0.4, 0.9, 0.7]]),
        predicted_weight=0.2,
    )
    rewards, is_valid = scores.tensors(torch.device("cpu"))
    torch.testing.assert_close(rewards, torch.tensor([[0.58, 1.18, 0.0]]))
    assert is_valid.tolist() == [[True, True, False]]
    advantages = group_advantages(rewards, is_valid)
    torch.testing.assert_close(advantages, torch.tensor([[-0.3, 0.3, 0.0]]))
    assert scores.first(1).learned.tolist() == [[pytest.approx(0.58)]]
    without = replace(scores, predicted=None)
    assert without.learned is without.rewards


def test_agreement_within_groups_by_hand() -> None:
    """A group in order, one in reverse, one without differences; errors of 0.1, 1.9, 0.1 in ten answers."""
    true = np.array([[0.0, 0.5, 1.0], [0.0, 0.5, 1.0], [0.3, 0.3, 0.3], [0.2, np.nan, np.nan]])
    predicted = np.array([[0.1, 0.5, 1.0], [1.0, 0.5, 0.1], [0.3, 0.3, 0.4], [0.2, 0.0, 0.0]])
    scores = Scores(true, np.zeros((4, 3, 7)), (), predicted, 0.5)
    scalars = agreement_scalars(scores, "refined")
    assert scalars["refined/scorer_spearman"] == (pytest.approx(0.0), 2.0)
    slope = np.corrcoef(true[0], predicted[0])[0, 1]
    assert scalars["refined/scorer_pearson"] == (pytest.approx((slope - slope) / 2), 2.0)
    error = (0.1 + (1.0 + 0.9) + 0.1) / 10
    assert scalars["refined/scorer_error"] == (pytest.approx(error), 10.0)
    assert agreement_scalars(replace(scores, predicted=None), "refined") == {}


def test_a_weight_needs_a_scorer() -> None:
    with pytest.raises(ValueError, match=r"needs reward\.scorer_path"):
        RewardConfig(scorer_weight=0.1)


def metrics_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def test_reinforcement_learning_with_a_scorer(settings: dict[str, Any], tmp_path: Path) -> None:
    """Weight 0 changes nothing but what is logged; another one changes what is learned, not what is true."""
    run(settings)
    scorer = str(Path(settings["output_dir"]) / "scorer")
    shared = ("checkpoint_path", "metric_cache_path", "dataset_root", "train_test_split", "tile_cache_path")
    base = {key: settings[key] for key in shared} | CONSENT
    base |= {
        "max_scenes": NUM_SCENES,
        "rollout": {"num_samples": 4, "num_refined": 2, "num_denoising_steps": 4},
        "objective": {"tau": 2},
        "generator_optimizer": {"learning_rate": 1e-3},
        "refiner_optimizer": {"learning_rate": 1e-3},
        "run": {"num_threads": 1, "batch_size": 2, "micro_batch_scenes": 1, "max_steps": 1},
    }

    def hybrid(name: str, reward: dict[str, Any], **rollout: Any) -> Path:
        own = {"output_dir": str(tmp_path / name), "reward": reward, "rollout": base["rollout"] | rollout}
        return train_hybrid.train(from_mapping(TrainHybridConfig, base | own)).parent

    plain = hybrid("plain", {})
    watched = hybrid("watched", {"scorer_path": scorer})
    mixed = hybrid("mixed", {"scorer_path": scorer, "scorer_weight": 0.5}, save_scored=True)
    plain_model, watched_model, mixed_model = (
        (folder / "model" / "model.safetensors").read_bytes() for folder in (plain, watched, mixed)
    )
    assert watched_model == plain_model != mixed_model
    (first,), (second,), (third,) = (metrics_of(folder) for folder in (plain, watched, mixed))
    added = {name for name in second if name not in first}
    assert added == {f"{k}/{n}" for k in ("generated", "refined") for n in agreement_names()}
    assert {name: second[name] for name in first} == first
    assert third["generated/reward"] == first["generated/reward"]  # the true one
    assert third["group/reward_std"] != first["group/reward_std"]

    # What was kept are the step's answers: their mean is the step's mean reward. A scorer learns from them.
    kept = read_rollouts(mixed / "rollouts")
    assert sorted(set(kept.kinds.tolist())) == ["generated", "refined"]
    assert len(kept) == 2 * (4 + 4 * 2)
    for kind in ("generated", "refined"):
        assert kept.scores[kept.kinds == kind].mean() == pytest.approx(third[f"{kind}/reward"])
    assert not (plain / "rollouts").exists()
    more = {"output_dir": str(tmp_path / "more"), "rollout_paths": (str(mixed / "rollouts"),)}
    run(settings | more)
    assert weights_of(settings | more) != weights_of(settings)

    # A scorer of another model is refused; GRPO takes it too.
    trained = base | {"checkpoint_path": str(mixed), "output_dir": str(tmp_path / "refused")}
    with pytest.raises(DataError, match="reads the hidden states of other weights"):
        train_hybrid.train(from_mapping(TrainHybridConfig, trained | {"reward": {"scorer_path": scorer}}))
    grpo = {key: value for key, value in base.items() if key != "refiner_optimizer"}
    grpo |= {
        "rollout": {"num_samples": 4, "num_denoising_steps": 4},
        "output_dir": str(tmp_path / "grpo"),
        "reward": {"scorer_path": scorer, "scorer_weight": 0.5},
    }
    train_grpo.train(from_mapping(TrainGRPOConfig, grpo))
    assert "generated/scorer_error" in metrics_of(tmp_path / "grpo")[0]


def agreement_names() -> list[str]:
    scores = Scores(np.ones((1, 2)), np.ones((1, 2, 7)), (), np.ones((1, 2)), 0.0)
    return [name.removeprefix("x/") for name in agreement_scalars(scores, "x")]


def test_rollouts_that_are_none_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scored rollouts in"):
        read_rollouts(tmp_path)
    (tmp_path / "part-0.parquet").write_bytes(b"no Parquet")
    with pytest.raises(DataError, match="is no part of scored rollouts"):
        read_rollouts(tmp_path)
    assert len(Rollouts.of_scenes(["a"], ["x"], np.zeros((1, 1, 24), int), np.zeros((1, 1, 7)))) == 1


def test_a_step_done_again_by_fewer_processes_is_kept_once(tmp_path: Path) -> None:
    """Steps 1 and 2 by two processes, scenes a and b; then step 2 again by one, which has both scenes."""

    def rows(*tokens: str) -> Rollouts:
        shape = (len(tokens), 1)
        return Rollouts.of_scenes(tokens, ["refined"], np.zeros((*shape, 24), int), np.ones((*shape, 7)))

    for step in (1, 2):
        write_part(step_part_path(tmp_path, step, 0), rows("a"))
        write_part(step_part_path(tmp_path, step, 1), rows("b"))
    write_part(step_part_path(tmp_path, 2, 0), rows("a", "b"))
    remove_parts_of_ranks_from(tmp_path, 2, 1)
    assert read_rollouts(tmp_path).tokens.tolist() == ["a", "b", "a", "b"]
