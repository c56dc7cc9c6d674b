"""Train a learned scorer: a head that predicts each PDM sub-score of a candidate plan (DriveFine*).

    python tools/train_scorer.py checkpoint_path=RUN dataset_root=DATASET metric_cache_path=CACHE \
        validation_metric_cache_path=CACHE_OF_VALIDATION
    python tools/evaluate.py agent=drivefine_best_of_n agent.selection=scorer agent.checkpoint_path=RUN \
        agent.scorer_path=OUT/scorer ...

The planner is frozen. For every scene of both splits it writes candidates, which are scored (rollouts/ in
`output_dir`; made once: a stopped run goes on there, and other settings of the head find them there).
Rollouts that reinforcement learning kept (rollout.save_scored=true) can be added (`rollout_paths`). Writes
into `output_dir` (default: $NAVSIM_EXP_ROOT/<experiment_name>, or runs/<experiment_name>): scorer/ (for
agent.scorer_path and reward.scorer_path), scorer_quality.json and scorer_quality.md (calibration, ranking and
choice on the validation split), metrics.jsonl. All keys: navsim_configs/train_scorer.yaml.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drivefine_agent.data.atomic import atomic_folder, write_bytes
from drivefine_agent.data.folder_lock import FolderLock
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.evaluation.scorer_quality import JudgedScene, quality_markdown, scorer_quality
from drivefine_agent.learned_scorer import PREDICTED, SCORER_FOLDER
from drivefine_agent.model.scorer_head import ScorerHead, ScorerHeadConfig, save_scorer
from drivefine_agent.model.weight_files import weights_hash
from drivefine_agent.planner import Planner
from drivefine_agent.provenance import as_record, parent_record, write_card
from drivefine_agent.scoring.cache import SceneCache
from drivefine_agent.training.candidates import GENERATED, REFINED, CandidateConfig
from drivefine_agent.training.config import dataset_paths
from drivefine_agent.training.demonstrations import load_demonstrations
from drivefine_agent.training.from_mapping import from_mapping
from drivefine_agent.training.metrics import MetricLog
from drivefine_agent.training.rollouts import Rollouts, joined, read_rollouts
from drivefine_agent.training.scenes import SplitScenes, load_split_scenes
from drivefine_agent.training.seeds import seed_global
from drivefine_agent.training.split_guard import check_splits, log_training_data
from rl.config import RewardConfig
from rl.rewards import reward_scorer, scorable_scenes
from rl.scorer_rollouts import make_rollouts
from rl.scorer_training import PREDICTED_COLUMNS, HeadTrainingConfig, ScoredScenes, predictions, train_head
from rl.setup import TrainingScenes, model_folder

LOGGER = logging.getLogger(__name__)

QUALITY_NAME = "scorer_quality"
METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class TrainScorerConfig:
    """Configuration of this script."""

    output_dir: str
    checkpoint_path: str
    """The planner: a model's folder, or a run's folder that holds `model/`."""
    metric_cache_path: str
    """Scene cache of the training split, from tools/build_scene_cache.py."""
    experiment_name: str = "drivefine_scorer"
    train_test_split: str = "world_train"
    """Split to learn from."""
    validation_split: str = "world_val"
    """Split to measure on."""
    validation_metric_cache_path: str | None = None
    """Its scene cache; None: it is in `metric_cache_path` too."""
    allow_test_split: bool = False
    """First consent to learning from test data, see `training/split_guard.py`."""
    i_train_on_test_tokens_of: str | None = None
    """Second consent: the test split."""
    dataset_root: str | None = None
    """None: OPENSCENE_DATA_ROOT."""
    splits_path: str | None = None
    """None: `splits` of the dataset."""
    max_scenes: int | None = None
    """Use only so many training scenes, evenly spread."""
    max_validation_scenes: int | None = None
    """The same of the validation scenes."""
    tile_cache_path: str | None = None
    """Where image tiles are kept between runs; None: `tiles` in output_dir."""
    rollout_paths: tuple[str, ...] = ()
    """Folders of scored rollouts of the training split to learn from as well."""
    device: str = "cpu"
    seed: int = 0
    num_threads: int | None = None
    """Torch's threads; None: all cores."""
    candidates: CandidateConfig = field(default_factory=CandidateConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Who scores."""
    head: HeadTrainingConfig = field(default_factory=HeadTrainingConfig)


def train(config: TrainScorerConfig) -> dict[str, Any]:
    """Rollouts, training, quality; returns the measures."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with FolderLock(config.output_dir):
        return _train(config)


def _train(config: TrainScorerConfig) -> dict[str, Any]:
    output, folder = Path(config.output_dir), model_folder(Path(config.checkpoint_path))
    planner, planner_sha256 = Planner.from_pretrained(folder, device=config.device), weights_hash(folder)
    paths = dataset_paths(config.dataset_root, config.splits_path)
    split = load_split_scenes(paths, config.train_test_split, config.max_scenes)
    held_out = load_split_scenes(paths, config.validation_split, config.max_validation_scenes)
    check = check_splits(split, held_out, paths, config)
    check.log_warnings()

    # Candidates of every scene, with their true sub-scores.
    training_scenes, rollouts = rollouts_of(planner, planner_sha256, split, config.metric_cache_path, config)
    rollouts = joined([rollouts, *(read_rollouts(Path(path)) for path in config.rollout_paths)])
    data = check.training_data("scorer", sorted(set(rollouts.tokens.tolist()) & set(split.tokens)), "scoring")
    log_training_data(data)
    held_out_cache = config.validation_metric_cache_path or config.metric_cache_path
    held_out_scenes, held_out_rollouts = rollouts_of(
        planner, planner_sha256, held_out, held_out_cache, config
    )

    # The head.
    seed_global(config.seed, "scorer weights", 0)
    width = planner.model.config.text_config.hidden_size
    sizes = {"slot_width": config.head.slot_width, "width": config.head.width, "dropout": config.head.dropout}
    head = ScorerHead(ScorerHeadConfig(width, PREDICTED, planner_sha256, **sizes)).to(planner.device)
    scored = ScoredScenes(planner, training_scenes, rollouts, config.head.states_cache_gb)
    (output / METRICS_NAME).unlink(missing_ok=True)  # of a head that was trained here before
    metrics = MetricLog(output)
    train_head(
        head, scored, config.head, config.seed, lambda step, scalars: metrics.add("scorer", step, scalars)
    )
    metrics.close()
    card = {"data": as_record(data), "parent": parent_record(folder), "configuration": asdict(config)}
    with atomic_folder(output / SCORER_FOLDER) as part:
        save_scorer(head, part)
        write_card(part, card)

    # What it is worth on scenes it has not seen.
    judged = ScoredScenes(planner, held_out_scenes, held_out_rollouts, config.head.states_cache_gb)
    quality = quality_of(head, judged, planner.model.config.n_refine > 0, config.candidates.num_samples)
    quality = {"split": held_out.name, "planner": str(folder), **quality}
    write_bytes(output / f"{QUALITY_NAME}.json", (json.dumps(quality, indent=1) + "\n").encode())
    write_bytes(output / f"{QUALITY_NAME}.md", quality_markdown(quality).encode())
    return quality


def rollouts_of(
    planner: Planner, planner_sha256: str, split: SplitScenes, cache_path: str, config: TrainScorerConfig
) -> tuple[TrainingScenes, Rollouts]:
    """Scenes of a split, and candidates of them with true sub-scores."""
    output, cache = Path(config.output_dir), SceneCache(Path(cache_path))
    keep = scorable_scenes(cache, split.tokens, split.name)
    if len(keep) == 0:
        raise DataError(f"split {split.name} has no scene that can be scored")
    tiles = output / "tiles" if config.tile_cache_path is None else Path(config.tile_cache_path)
    without_maps = SplitScenes(split.name, split.windows, split.sensor_root)
    scenes = TrainingScenes(load_demonstrations(without_maps, planner.prompts, tiles), keep, planner.device)
    with reward_scorer(config.reward, Path(cache_path)) as rewards:
        rollouts = make_rollouts(
            planner,
            scenes,
            rewards,
            output / "rollouts" / split.name,
            config.candidates,
            config.seed,
            planner_sha256,
            [cache.fingerprint(split.tokens[i]) for i in keep],
        )
    return scenes, rollouts


def quality_of(head: ScorerHead, scored: ScoredScenes, is_refined: bool, num_samples: int) -> dict[str, Any]:
    """Measures on held-out scenes; choices are made among the samples of the first temperature."""
    judged = [
        JudgedScene(rollouts.kinds, predicted, rollouts.sub_scores[:, PREDICTED_COLUMNS], rollouts.scores)
        for rollouts, predicted in zip(scored.candidates, predictions(head, scored), strict=True)
    ]
    kinds = (REFINED, GENERATED) if is_refined else (GENERATED,)
    return scorer_quality(judged, [(kind, num_samples) for kind in kinds])


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="train_scorer")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
        settings = from_mapping(TrainScorerConfig, values)
        print(quality_markdown(train(settings)))
        print(f"scorer: {Path(settings.output_dir) / SCORER_FOLDER}")
    except (DriveFineError, FloatingPointError, ValueError, OmegaConfBaseException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
