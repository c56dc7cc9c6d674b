"""The 8B recipes, composed as the commands compose them, hold the paper's numbers (sections 4.1 and 4.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from drivefine_agent.training.config import TrainSFTConfig
from drivefine_agent.training.from_mapping import from_mapping
from drivefine_agent.training.optimization import learning_rate_factor
from rl.config import TrainHybridConfig

ROOT = Path(__file__).parents[1]


def composed(script: str, recipe: str, *overrides: str) -> Any:
    """The mapping that the command gets."""
    with initialize_config_dir(str(ROOT / "navsim_configs"), version_base="1.3"):
        return OmegaConf.to_container(compose(script, [f"+recipe={recipe}", *overrides]), resolve=True)


def test_supervised_recipe() -> None:
    config = from_mapping(
        TrainSFTConfig, composed("train_sft", "llada_8b_sft", "output_dir=out", "model.init_from=x")
    )
    generator = config.generator
    assert config.model.preset == "llada_8b"
    assert (generator.num_epochs, generator.batch_size) == (12, 64)
    assert generator.optimizer.learning_rate == 4e-5
    assert generator.train_vision
    # Plain AdamW with LaViDa's choices, none of what the tiny model from scratch needs.
    assert generator.optimizer == TrainSFTConfig("out").generator.optimizer
    assert generator == TrainSFTConfig("out").generator
    assert config.refiner == TrainSFTConfig("out").refiner
    assert config.perception.num_epochs == 0


def test_reinforcement_recipe() -> None:
    mapping = composed(
        "train_hybrid",
        "llada_8b_rft",
        "output_dir=out",
        "checkpoint_path=sft",
        "metric_cache_path=cache",
        "engine.backend=zero2",
    )
    config = from_mapping(TrainHybridConfig, mapping)
    assert (config.run.num_epochs, config.run.batch_size) == (1, 16)
    assert (config.rollout.num_samples, config.rollout.num_refined) == (10, 6)
    assert (config.rollout.num_denoising_steps, config.objective.tau) == (12, 3)
    for optimizer in config.optimizers.values():
        assert optimizer.learning_rate == 1e-6
        rates = [
            learning_rate_factor(step, 100, optimizer.warmup_share, optimizer.final_share)
            for step in range(100)
        ]
        assert rates == [1.0] * 100
    assert config.engine.backend == "zero2"  # the command line has the last word
    assert config.engine.precision == "bfloat16"
    assert config.engine.gradient_checkpointing
    assert config.run.micro_batch_scenes == 1
    assert set(config.optimizers) == {"generator", "refiner"}
