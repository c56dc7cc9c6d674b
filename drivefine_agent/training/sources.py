"""Where training examples come from, as the configuration says: NAVSIM's logs, ReCogDrive's files, both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from drivefine_agent.constants import DRIVING_COMMANDS
from drivefine_agent.data.driving_text import parse_motion, parse_trajectory, spread_rounding
from drivefine_agent.data.recogdrive import Conversation, ConversationFile, relative_image
from drivefine_agent.data.types import FloatArray, Observation
from drivefine_agent.errors import DataError
from drivefine_agent.prompt import PromptBuilder
from drivefine_agent.training.config import DataConfig, SourceConfig, TrainSFTConfig
from drivefine_agent.training.demonstrations import (
    Demonstrations,
    load_demonstrations,
    make_demonstrations,
)
from drivefine_agent.training.questions import Questions
from drivefine_agent.training.scenes import SplitScenes, load_split_scenes
from drivefine_agent.training.split_guard import Samples
from drivefine_agent.training.tile_cache import ImageSet, load_tiles
from drivefine_agent.training.visual_cache import load_visual

if TYPE_CHECKING:
    from drivefine_agent.model.drivefine_model import DriveFineModel


Source = Demonstrations | Questions


@dataclass(frozen=True)
class SourceFile:
    """A JSON-lines file that was read once and found sound."""

    config: SourceConfig
    file: ConversationFile
    paths: tuple[str, ...]
    """(N,) images of the lines, below the image root."""

    def images(self, prompts: PromptBuilder) -> ImageSet:
        """The images, as the model of these prompts tiles them."""
        assert self.config.image_root is not None
        return ImageSet(self.paths, Path(self.config.image_root), prompts.config.tiles)

    @property
    def seen(self) -> Samples:
        """Which scenes these are: tokens where lines have them; logs by the images' folders."""
        tokens = frozenset(token for token in self.file.tokens if token is not None)
        parts = (PurePosixPath(image).parts for image in self.file.images)
        logs = frozenset(folders[-3] for folders in parts if len(folders) >= 3)  # <log>/CAM_F0/<name>.jpg
        return Samples(self.file.path.name, tokens, logs, num_listed=len(tokens))


def open_sources(
    config: TrainSFTConfig, split: SplitScenes | None, show_progress: bool = True
) -> list[SplitScenes | SourceFile]:
    """What `config.data` names, in its order, not yet in the model's format; nothing named: the split.

    Args:
      config: the run's.
      split: scenes of `train_test_split`; None where no source uses them.
      show_progress: draw progress bars.

    Raises:
      DataError: a file, a line of it or a split is missing or damaged.
    """
    opened: list[SplitScenes | SourceFile] = []
    for source in config.data.sources or (SourceConfig("navsim"),):
        if source.kind != "navsim":
            opened.append(open_file(source, show_progress))
        elif source.path is None:
            assert split is not None
            opened.append(split)
        else:
            opened.append(load_split_scenes(config.paths, source.path, config.max_scenes, show_progress))
    return opened


def scenes_seen(opened: Sequence[SplitScenes | SourceFile], split: SplitScenes | None) -> list[Samples]:
    """Which scenes are learned from: those of the sources, and of the split for `perception`."""
    seen = [source.seen if isinstance(source, SourceFile) else Samples.of(source) for source in opened]
    return seen if split is None or any(source is split for source in opened) else [Samples.of(split), *seen]


def load_sources(
    opened: Sequence[SplitScenes | SourceFile],
    prompts: PromptBuilder,
    tile_folder: Path | None,
    answer_lengths: tuple[int, ...],
    demonstrations: Demonstrations | None = None,
    show_progress: bool = True,
) -> list[Source]:
    """The sources in the model's format.

    Args:
      opened: from `open_sources`.
      prompts: writes prompts in the model's format.
      tile_folder: where tiles are kept; None: nowhere.
      answer_lengths: of answers in words.
      demonstrations: of the split given to `open_sources`, where they are loaded already.
      show_progress: draw progress bars.

    Raises:
      DataError: a line is not of its file's kind, or an image is missing or damaged.
    """
    sources: list[Source] = []
    for source in opened:
        if isinstance(source, SplitScenes):
            is_loaded = demonstrations is not None and demonstrations.tokens == source.tokens
            sources.append(
                demonstrations
                if is_loaded and demonstrations is not None
                else load_demonstrations(source, prompts, tile_folder, show_progress)
            )
        elif source.config.kind == "recogdrive_qa":
            images = source.images(prompts)
            tiles = load_tiles(tile_folder, images, show_progress=show_progress)
            sources.append(Questions(source.file, images, tiles, prompts, answer_lengths))
        else:
            sources.append(load_trajectories(source, prompts, tile_folder, show_progress))
    return sources


def open_file(source: SourceConfig, show_progress: bool = True) -> SourceFile:
    """Reads and checks a JSON-lines file once; raises as `open_sources`."""
    assert source.path is not None
    file = ConversationFile(source.path, show_progress)
    paths = tuple(
        relative_image(image, source.image_prefix, f"{file.path}, line {number}")
        for number, image in enumerate(file.images, start=1)
    )
    return SourceFile(source, file, paths)


def load_trajectories(
    source: SourceFile, prompts: PromptBuilder, tile_folder: Path | None, show_progress: bool = True
) -> Demonstrations:
    """A trajectory set: motion, command and answer parsed from its text, prompts in the model's own format.

    Raises:
      DataError: as `load_sources`; also a question without velocity and acceleration where the model's prompt
        has them. Names file and line.
    """
    file, images = source.file, source.images(prompts)
    needs_dynamics = prompts.config.prompt_type == "vel_and_acc"
    observations, poses, tokens = [], [], []
    for number in range(len(file)):
        conversation = file[number]
        observation, trajectory = read_demonstration(conversation, needs_dynamics)
        if source.config.spread_rounding:
            observation, trajectory = _spread(observation, trajectory, np.random.default_rng(number))
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


def _spread(
    observation: Observation, poses: FloatArray, rng: np.random.Generator
) -> tuple[Observation, FloatArray]:
    """Motion and (8, 3) poses without the steps of their text; the pose of now stays the origin."""
    history = observation.history_poses.copy()
    history[:-1] = spread_rounding(history[:-1], rng)
    spread = replace(
        observation,
        history_poses=history,
        velocity=spread_rounding(observation.velocity, rng),
        acceleration=spread_rounding(observation.acceleration, rng),
    )
    return spread, spread_rounding(poses, rng)


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
