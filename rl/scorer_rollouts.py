"""Candidates of every scene of a split, drawn from a planner and scored, in a folder of parts.

A part holds `SCENES_PER_PART` scenes; its bytes depend on planner, settings, seed and the place of the scenes
in the split alone, so that a stopped run goes on and ends with the same files as an unbroken one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from drivefine_agent.planner import Planner
from drivefine_agent.training.candidates import CandidateConfig, draw_candidates
from drivefine_agent.training.objectives import Instructions
from drivefine_agent.training.rollouts import Rollouts, joined, part_path, read_part, write_part
from drivefine_agent.training.run_folder import claim_run_folder
from rl.rewards import RewardScorer, Scores
from rl.rollout import encode_scenes
from rl.setup import TrainingScenes

LOGGER = logging.getLogger(__name__)

SCENES_PER_PART = 16


def make_rollouts(
    planner: Planner,
    scenes: TrainingScenes,
    rewards: RewardScorer,
    folder: Path,
    config: CandidateConfig,
    seed: int,
    planner_sha256: str,
    fingerprints: Sequence[int | None],
) -> Rollouts:
    """Reads the parts that are there and makes the others.

    Args:
      planner: draws the candidates.
      scenes: of the split, all of them scorable.
      rewards: scores them.
      folder: of the parts.
      config: which candidates.
      seed: of the candidates.
      planner_sha256: of the planner's weights; the folder belongs to one planner and one configuration.
      fingerprints: of what the scenes were prepared from for scoring (`SceneCache.fingerprint`).

    Raises:
      DataError: the folder belongs to another planner or configuration, or to scenes prepared from other logs
        or maps; or a part is damaged.
    """
    tokens = "\n".join(scenes.tokens(np.arange(len(scenes))))
    belongs_to = {
        "candidates": asdict(config),
        "seed": seed,
        "planner_sha256": planner_sha256,
        "tokens_sha256": hashlib.sha256(tokens.encode()).hexdigest(),
        "logs_and_maps_sha256": hashlib.sha256(repr(list(fingerprints)).encode()).hexdigest(),
    }
    claim_run_folder(folder, belongs_to)
    model, instructions = planner.model, Instructions(planner.prompts, planner.device)
    kinds = config.kinds(model.config.n_refine > 0)
    starts = range(0, len(scenes), SCENES_PER_PART)
    parts = []
    for number, start in enumerate(tqdm(starts, desc=f"rollouts {folder.name}", unit="part")):
        path = part_path(folder, f"{number:05d}")
        if not path.is_file():
            index = np.arange(start, min(start + SCENES_PER_PART, len(scenes)))
            context = encode_scenes(model, scenes.inputs(model, index))
            actions = draw_candidates(
                model, context, instructions, scenes.human_poses(index), config, seed, index.tolist()
            )
            poses = planner.action_tokenizer.decode(actions.cpu().numpy())
            scores = scored(rewards, scenes.tokens(index), poses)
            write_part(
                path,
                Rollouts.of_scenes(scenes.tokens(index), kinds, actions.cpu().numpy(), scores.sub_scores),
            )
        parts.append(read_part(path))
    rollouts = joined(parts)
    num_failed = int((~rollouts.is_valid).sum())
    LOGGER.info(
        "%s: %d candidates of %d scenes, %d could not be scored and are left out",
        folder,
        len(rollouts),
        len(scenes),
        num_failed,
    )
    return rollouts


def scored(rewards: RewardScorer, tokens: Sequence[str], poses: NDArray[np.float64]) -> Scores:
    """Scores of trajectories (B, P, 8, 3), where a scoring process was lost those of a second try.

    What is kept must not depend on an accident; what loses a process twice has no score.
    """
    num_lost = rewards.num_lost_workers
    scores = rewards.collect(rewards.submit(tokens, poses))
    if rewards.num_lost_workers > num_lost and not scores.is_valid.all():
        LOGGER.warning("a scoring process was lost: its part of the rollouts is scored again")
        scores = rewards.collect(rewards.submit(tokens, poses))
    return scores
