"""Supervised training of DriveFine: the generator, then the refiner's warm start.

    python tools/train_sft.py dataset_root=DATASET experiment_name=sft          # tiny model, CPU
    python tools/train_sft.py dataset_root=DATASET model.preset=debug generator.num_epochs=2    # seconds
    python tools/train_sft.py dataset_root=DATASET generator.num_epochs=30 refiner.num_epochs=0

0. Perception, for models from scratch only: the vision tower learns a bird's-eye grid, in place of the
   pretraining that a real tower comes with.
1. Generator: masked diffusion with complementary masking on the drivers' trajectories (equation 1 of the
   paper), and on answers in words where `data.sources` has some (docs/data.md). Trains vision tower,
   projector, language model and action tables. With model.decoder=autoregressive or diffusion_head, a
   baseline by its own loss on the same data (docs/baselines.md); it has no refiner.
2. Refiner: its blocks start as copies of the generator's last ones and learn to turn spoilt trajectories, the
   generator's own samples among them, into the driver's. Everything else is frozen.

Writes into `output_dir` (default: $NAVSIM_EXP_ROOT/<experiment_name>, or runs/<experiment_name> without the
variable): model/ (for agent.checkpoint_path, with the card provenance.json that says from which tokens it
was made), checkpoints/, tensorboard/, config.json, metrics.jsonl. Test data are refused as training scenes. A
stopped run goes on where it was and ends with the same bits as an unbroken one. All keys:
navsim_configs/train_sft.yaml and drivefine_agent/training/config.py.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from drivefine_agent.data.atomic import atomic_folder
from drivefine_agent.data.folder_lock import FolderLock
from drivefine_agent.errors import DriveFineError
from drivefine_agent.planner import Planner
from drivefine_agent.provenance import as_record, parent_record, write_card
from drivefine_agent.training.config import TrainSFTConfig
from drivefine_agent.training.demonstrations import Demonstrations, load_demonstrations
from drivefine_agent.training.from_mapping import from_mapping
from drivefine_agent.training.loader import StepBatches, loader_errors
from drivefine_agent.training.metrics import MetricLog
from drivefine_agent.training.model_choice import build_planner
from drivefine_agent.training.objectives import (
    Instructions,
    mean_over_examples,
    perception_loss,
    refiner_loss,
    sft_loss,
)
from drivefine_agent.training.phase import (
    LANGUAGE_PARTS,
    PERCEPTION_PARTS,
    POSE_HEAD_PARTS,
    REFINER_PARTS,
    VISION_PARTS,
    Phase,
    batch_order,
    num_epoch_steps,
)
from drivefine_agent.training.questions import Questions
from drivefine_agent.training.run_folder import claim_run_folder
from drivefine_agent.training.scenes import SplitScenes, load_split_scenes
from drivefine_agent.training.seeds import generator_for
from drivefine_agent.training.sources import (
    Source,
    SourceFile,
    keep_visual,
    load_sources,
    open_sources,
    scenes_seen,
)
from drivefine_agent.training.split_guard import SplitCheck, check_sources, log_training_data
from drivefine_agent.training.torch_settings import set_up_torch
from drivefine_agent.training.validation import Validation, validate

LOGGER = logging.getLogger(__name__)

Card = Mapping[str, Any]
"""Of `drivefine_agent/provenance.py`."""


def train(config: TrainSFTConfig) -> Validation | None:
    """All phases; returns the refined model's validation, None where the refiner was not trained."""
    train_scenes = None
    if config.data.uses_split or config.perception.num_epochs > 0:
        train_scenes = load_split_scenes(config.paths, config.train_test_split, config.max_scenes)
    held_out_scenes = load_split_scenes(config.paths, config.validation_split, config.max_validation_scenes)
    opened = open_sources(config, train_scenes)
    check = check_sources(scenes_seen(opened, train_scenes), held_out_scenes, config.paths, config)
    check.log_warnings()
    with FolderLock(config.output_dir):
        return _train_phases(config, train_scenes, held_out_scenes, opened, check)


def _train_phases(
    config: TrainSFTConfig,
    train_scenes: SplitScenes | None,
    held_out_scenes: SplitScenes,
    opened: list[SplitScenes | SourceFile],
    check: SplitCheck,
) -> Validation | None:
    output = Path(config.output_dir)
    claim_run_folder(output, asdict(config))
    set_up_torch(config.run.num_threads, config.run.deterministic)

    planner = build_planner(config.model, config.run.seed, config.run.device)
    instructions = Instructions(planner.prompts, config.run.device)
    cache = output / "tiles" if config.tile_cache_path is None else Path(config.tile_cache_path)
    tiles = cache if config.data.cache_tiles else None
    card = training_card(config, check)
    demonstrations = None
    if train_scenes is not None:
        demonstrations = load_demonstrations(train_scenes, planner.prompts, tiles)
    held_out = load_demonstrations(held_out_scenes, planner.prompts, tiles)
    sources = load_sources(opened, planner.prompts, tiles, config.data.answer_lengths, demonstrations)
    report_data(sources, held_out)

    metrics = MetricLog(output)
    if config.perception.num_epochs > 0 and planner.model.perception is not None:
        assert demonstrations is not None
        train_perception(config, planner, demonstrations, held_out, metrics, card)
    if config.generator.num_epochs > 0:
        train_generator(config, planner, instructions, sources, held_out, metrics, card, cache)
    validation = None
    if config.refiner.num_epochs > 0 and planner.model.config.has_refiner:
        validation = train_refiner(config, planner, instructions, sources, held_out, metrics, card, cache)
    with atomic_folder(output / "model") as part:
        planner.save_pretrained(part)
        write_card(part, card)
    metrics.close()
    LOGGER.info("model: %s", output / "model")
    return validation


# ------------------------------------------------------------------------------------------ perception


def train_perception(
    config: TrainSFTConfig,
    planner: Planner,
    demonstrations: Demonstrations,
    held_out: Demonstrations,
    metrics: MetricLog,
    card: Card,
) -> None:
    """Phase 0, for a vision tower from scratch: images in, a bird's-eye grid of the scene out."""
    run, settings, model = config.run, config.perception, planner.model
    phase = Phase.begin_or_resume(
        "perception",
        model,
        PERCEPTION_PARTS,
        settings.optimizer,
        average_decay=0.0,
        num_steps=settings.num_epochs * num_epoch_steps(len(demonstrations), settings.batch_size),
        folder=Path(config.output_dir) / "checkpoints",
        card=card,
    )
    model.train()
    for step in tqdm(
        range(phase.step, phase.num_steps), desc="Perception", unit="step", disable=phase.is_done
    ):
        index = batch_order(len(demonstrations), settings.batch_size, run.seed, "perception order", step)
        light = generator_for(run.seed, "perception augmentation", step)
        batch = demonstrations.batch(index, settings.augmentation, light).to(run.device)
        scalars = phase.update(perception_loss(model, batch))
        if step % run.log_every == 0:
            metrics.add("perception", phase.step, scalars)
        if phase.step % run.checkpoint_every == 0:
            phase.save()
    if not phase.is_done:
        phase.finish()
        with torch.no_grad():
            seen = perception_loss(model, held_out.batch(range(len(held_out))).to(run.device)).item()
        metrics.add("perception_validation", phase.step, {"loss": seen}, is_shown=True)


# ------------------------------------------------------------------------------------------ generator


def train_generator(
    config: TrainSFTConfig,
    planner: Planner,
    instructions: Instructions,
    sources: list[Source],
    held_out: Demonstrations,
    metrics: MetricLog,
    card: Card,
    cache: Path,
) -> None:
    """Phase 1: complementary masking. Leaves the averaged weights, in both experts."""
    run, settings, data, model = config.run, config.generator, config.data, planner.model
    if any(isinstance(source, Questions) for source in sources):
        model.train_text_head()
    batches = StepBatches(
        sources, data.ratios, settings.batch_size, run.seed, "generator", settings.augmentation
    )
    per_epoch = batches.num_epoch_steps
    parts = (*VISION_PARTS, *LANGUAGE_PARTS) if settings.train_vision else LANGUAGE_PARTS
    if model.pose_head is not None:
        parts = (*parts, *POSE_HEAD_PARTS) if settings.train_language else POSE_HEAD_PARTS
    phase = Phase.begin_or_resume(
        "generator",
        model,
        parts,
        settings.optimizer,
        settings.average_decay,
        num_steps=settings.num_epochs * per_epoch,
        folder=Path(config.output_dir) / "checkpoints",
        card=card,
    )
    if not phase.is_done:  # vision is as it will stay, where its tokens are kept
        batches = replace(batches, sources=keep_visual(sources, data, model, cache))
        (held_out,) = keep_visual([held_out], data, model, cache)
    model.train()
    loader = batches.steps(phase.step, phase.num_steps, data.num_workers, data.prefetch)
    for step in tqdm(
        range(phase.step, phase.num_steps), desc="Generator", unit="step", disable=phase.is_done
    ):
        parts = [part.to(run.device) for part in next(loader)]
        masks = generator_for(run.seed, "generator masks", step)
        loss = sft_loss(model, parts, instructions, masks, settings)
        scalars = phase.update(loss.total)
        if step % run.log_every == 0:
            metrics.add("generator", phase.step, scalars | loss.scalars)
        if phase.step % (per_epoch * run.validate_every_epochs) == 0 or phase.step == phase.num_steps:
            with phase.averaged_weights():
                result = validate(model, held_out, instructions, run.num_denoising_steps, refine=False)
            metrics.add("generator_validation", phase.step, result.scalars(), is_shown=True)
        if phase.step % run.checkpoint_every == 0:
            phase.save()
    if not phase.is_done:
        phase.finish(before_saving=model.backbone.copy_generation_to_refinement)


# ------------------------------------------------------------------------------------------ refiner


def train_refiner(
    config: TrainSFTConfig,
    planner: Planner,
    instructions: Instructions,
    sources: list[Source],
    held_out: Demonstrations,
    metrics: MetricLog,
    card: Card,
    cache: Path,
) -> Validation:
    """Phase 2: spoilt demonstrations in, the driver's out. Returns how refined plans compare to generated."""
    run, settings, data, model = config.run, config.refiner, config.data, planner.model
    chosen = [i for i, source in enumerate(sources) if isinstance(source, Demonstrations)]
    trajectories = [sources[i] for i in chosen]
    ratios = tuple(data.ratios[i] for i in chosen)
    batches = StepBatches(
        trajectories, ratios, settings.batch_size, run.seed, "refiner", settings.augmentation
    )
    per_epoch = batches.num_epoch_steps
    phase = Phase.begin_or_resume(
        "refiner",
        model,
        REFINER_PARTS,
        settings.optimizer,
        settings.average_decay,
        num_steps=settings.num_epochs * per_epoch,
        folder=Path(config.output_dir) / "checkpoints",
        card=card,
    )
    # Only now the model holds the weights that the phase goes on from.
    batches = replace(batches, sources=keep_visual(trajectories, data, model, cache))
    (held_out,) = keep_visual([held_out], data, model, cache)
    model.train()
    loader = batches.steps(phase.step, phase.num_steps, data.num_workers, data.prefetch)
    for step in tqdm(range(phase.step, phase.num_steps), desc="Refiner", unit="step", disable=phase.is_done):
        parts = [part.to(run.device) for part in next(loader)]
        spoil = generator_for(run.seed, "refiner inputs", step)
        losses = [
            refiner_loss(model, part, instructions, planner.action_tokenizer, settings, spoil)
            for part in parts
        ]
        loss = mean_over_examples(parts, losses)
        scalars = phase.update(loss.total)
        if step % run.log_every == 0:
            metrics.add("refiner", phase.step, scalars | loss.scalars)
        if phase.step % run.checkpoint_every == 0:
            phase.save()
    if not phase.is_done:
        phase.finish()
    result = validate(model, held_out, instructions, run.num_denoising_steps, refine=True)
    metrics.add("refiner_validation", phase.step, result.scalars(), is_shown=True)
    report_gate(result)
    return result


# ------------------------------------------------------------------------------------------ reports


def training_card(config: TrainSFTConfig, check: SplitCheck) -> Card:
    """What the model learns from; part of every checkpoint."""
    data = check.training_data("sft")
    log_training_data(data)
    start = config.model.init_from
    return {
        "data": as_record(data),
        "validation": check.validation,
        "parent": None if start is None else parent_record(Path(start)),
        "seeds": {"run": config.run.seed},
        "configuration": asdict(config),
    }


def report_data(sources: list[Source], held_out: Demonstrations) -> None:
    """How much there is, and what the action tables could not hold."""
    for name, scenes in (*(("training", source) for source in sources), ("held-out", held_out)):
        if isinstance(scenes, Questions):
            LOGGER.info("%s: %d images with questions in words, %s", name, len(scenes), scenes.file.path)
            continue
        clipped = scenes.clipped
        LOGGER.info(
            "%s: %d scenes; outside the action tables: %d trajectories (%d positions, %d headings), "
            "%d prompt numbers",
            name,
            len(scenes),
            clipped.num_clipped_trajectories,
            clipped.num_clipped_positions,
            clipped.num_clipped_headings,
            scenes.num_clipped_inputs,
        )


def report_gate(result: Validation) -> None:
    """Says aloud when greedy refinement takes plans further from the driver's; the PDM score decides."""
    assert result.refined_displacement_m is not None
    change = result.refined_displacement_m - result.displacement_m
    level = logging.WARNING if change > 0 else logging.INFO
    verdict = "further from" if change > 0 else "closer to"
    LOGGER.log(
        level,
        "refinement takes held-out plans %.3f m %s the driver's (ADE %.3f -> %.3f m)",
        abs(change),
        verdict,
        result.displacement_m,
        result.refined_displacement_m,
    )


@hydra.main(version_base="1.3", config_path="../navsim_configs", config_name="train_sft")
def main(config: DictConfig) -> None:
    """Convert errors made for people into one line; everything else is a bug and keeps its traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
        with loader_errors():
            train(from_mapping(TrainSFTConfig, values))
    except (DriveFineError, FloatingPointError, ValueError, OmegaConfBaseException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
