"""Where training examples come from, as the configuration says: NAVSIM's logs, ReCogDrive's files, both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from drivefine_agent.constants import DRIVING_COMMANDS
from drivefine_agent.data.driving_text import parse_motion, parse_trajectory
from drivefine_agent.data.recogdrive import Conversation, ConversationFile, relative_image
from drivefine_agent.data.types import FloatArray, Observation
from drivefine_agent.errors import DataError
from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.prompt import PromptBuilder
from drivefine_agent.training.config import DataConfig, SourceConfig, TrainSFTConfig
from drivefine_agent.training.demonstrations import (
    Demonstrations,
    load_demonstrations,
    make_demonstrations,
)
from drivefine_agent.training.questions import Questions
from drivefine_agent.training.scenes import load_split_scenes
from drivefine_agent.training.tile_cache import ImageSet, load_tiles
from drivefine_agent.training.visual_cache import load_visual

Source = Demonstrations | Questions


def load_sources(
    config: TrainSFTConfig,
    prompts: PromptBuilder,
    tile_folder: Path | None,
    demonstrations: Demonstrations | None,
    show_progress: bool = True,
) -> list[Source]:
    """The sources of `config.data`, in their order; without any, the scenes of the split alone.

    Args:
      config: the run's.
      prompts: writes prompts in the model's format.
      tile_folder: where tiles are kept; None: nowhere.
      demonstrations: scenes of `train_test_split`; None where no source and no phase uses them.
      show_progress: draw progress bars.

    Raises:
      DataError: a file, a line of it or an image is missing or damaged.
    """
    sources: list[Source] = []
    for source in config.data.sources or (SourceConfig("navsim"),):
        if source.kind == "recogdrive_trajectories":
            sources.append(load_trajectories(source, prompts, tile_folder, show_progress))
        elif source.kind == "recogdrive_qa":
            lengths = config.data.answer_lengths
            sources.append(load_questions(source, prompts, tile_folder, lengths, show_progress))
        elif source.path is None:
            assert demonstrations is not None
            sources.append(demonstrations)
        else:
            scenes = load_split_scenes(config.paths, source.path, config.max_scenes, show_progress)
            sources.append(load_demonstrations(scenes, prompts, tile_folder, show_progress))
    return sources


def load_trajectories(
    source: SourceConfig, prompts: PromptBuilder, tile_folder: Path | None, show_progress: bool = True
) -> Demonstrations:
    """A trajectory set: motion, command and answer parsed from its text, prompts in the model's own format.

    Raises:
      DataError: as `load_sources`; also a question without velocity and acceleration where the model's prompt
        has them. Names file and line.
    """
    file, images = _open(source, prompts, show_progress, any_size=False)
    needs_dynamics = prompts.config.prompt_type == "vel_and_acc"
    observations, poses, tokens = [], [], []
    for number in range(len(file)):
        conversation = file[number]
        observation, trajectory = read_demonstration(conversation, needs_dynamics)
        observations.append(observation)
        poses.append(trajectory)
        tokens.append(conversation.token or f"{file.path.name}:{number + 1}")
    tiles = load_tiles(tile_folder, images, show_progress=show_progress)
    return make_demonstrations(tuple(tokens), images, tiles, observations, np.stack(poses), prompts)


def read_demonstration(conversation: Conversation, needs_dynamics: bool) -> tuple[Observation, FloatArray]:
    """Motion and command, with a placeholder for the image, and (8, 3) poses of one line of a trajectory set.

    Raises:
      DataError: the line has several questions, or something is missing in its text; names file and line.
    """
    if len(conversation.turns) != 1:
        raise DataError(
            f"{conversation.where}: expected one question in a trajectory set, found "
            f"{len(conversation.turns)}: is this a QA set (kind recogdrive_qa)?"
        )
    turn = conversation.turns[0]
    try:
        motion, poses = parse_motion(turn.question), parse_trajectory(turn.answer)
    except DataError as error:
        raise DataError(f"{conversation.where}: {error}") from error
    velocity, acceleration = motion.velocity, motion.acceleration
    if velocity is None or acceleration is None:
        if needs_dynamics:
            raise DataError(
                f"{conversation.where}: expected velocity and acceleration in the question, found none: "
                "train a model with prompt_type=base, or export with prompt_type=vel_and_acc"
            )
        velocity = acceleration = np.zeros(2)
    command = np.zeros(len(DRIVING_COMMANDS), dtype=np.int64)
    command[DRIVING_COMMANDS.index(motion.command)] = 1
    placeholder = np.zeros((1, 1, 3), dtype=np.uint8)
    return Observation(placeholder, motion.history_poses, velocity, acceleration, command), poses


def load_questions(
    source: SourceConfig,
    prompts: PromptBuilder,
    tile_folder: Path | None,
    answer_lengths: tuple[int, ...],
    show_progress: bool = True,
) -> Questions:
    """A QA set; raises as `load_sources`."""
    file, images = _open(source, prompts, show_progress, any_size=True)
    tiles = load_tiles(tile_folder, images, show_progress=show_progress)
    return Questions(file, images, tiles, prompts, answer_lengths)


def keep_visual(
    sources: Sequence[Source],
    data: DataConfig,
    model: DriveFineModel,
    folder: Path,
    show_progress: bool = True,
) -> list[Source]:
    """The sources with their visual tokens kept on disk, where the configuration asks for it.

    Args:
      sources: what to train on, or to validate with.
      data: `visual_cache` says whether and in which type.
      model: tower and projector as they will stay; vision must not be trained while these are in use.
      folder: where arrays are kept.
      show_progress: draw progress bars.
    """
    if data.visual_cache is None:
        return list(sources)
    kept: list[Source] = []
    for source in sources:
        assert source.images is not None
        visual = load_visual(folder, model, source.images, source.tiles, data.visual_cache, show_progress)
        kept.append(replace(source, visual=visual))
    return kept


def _open(
    source: SourceConfig, prompts: PromptBuilder, show_progress: bool, any_size: bool
) -> tuple[ConversationFile, ImageSet]:
    assert source.path is not None
    assert source.image_root is not None
    file = ConversationFile(source.path, show_progress)
    paths = tuple(
        relative_image(image, source.image_prefix, f"{file.path}, line {number}")
        for number, image in enumerate(file.images, start=1)
    )
    return file, ImageSet(paths, Path(source.image_root), prompts.config.tiles, any_size)
