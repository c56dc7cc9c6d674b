"""What a supervised run can be told; every default is here, the YAML files hold only what a run changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.diffusion.losses import LossWeightName
from drivefine_agent.diffusion.masking import NoiseName
from drivefine_agent.model.choices import DecoderName
from drivefine_agent.training.corruptions import DEFAULT_SHARES
from drivefine_agent.training.optimization import OptimizerConfig
from drivefine_agent.training.visual_cache import VisualType


@dataclass(frozen=True)
class ModelChoice:
    """The model to train."""

    preset: Literal["tiny", "debug", "llada_8b"] = "tiny"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of DriveFineConfig to set differently, such as n_refine."""
    init_from: str | None = None
    """Folder of a DriveFine checkpoint to start from; None: random weights. An override of n_refine gives it
    that many new refinement blocks, copies of its last blocks; it can have no other."""
    decoder: DecoderName | None = None
    """`autoregressive` or `diffusion_head`: a baseline on the same vision tower, prompt and blocks, without
    refinement expert (docs/baselines.md). None: that of the checkpoint, or `masked`."""


@dataclass(frozen=True)
class AugmentationConfig:
    """Changes of training scenes; see `augmentation.py`."""

    mirror_probability: float = 0.0
    """Share of scene visits with left and right exchanged; also shows traffic on the other side."""
    light_jitter: float = 0.0
    """Largest relative change of brightness, contrast and colour."""

    @property
    def changes_images(self) -> bool:
        """Whether images may differ from visit to visit."""
        return self.mirror_probability > 0 or self.light_jitter > 0

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("mirror_probability", "light_jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class PerceptionConfig:
    """Training of a vision tower from scratch on the bird's-eye grid (`perception.py`), before all else."""

    num_epochs: int = 0
    """0 leaves the tower as it is: pretrained ones need no such phase."""
    batch_size: int = 32
    """Scenes per step."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.num_epochs < 0 or self.batch_size < 1:
            raise ValueError(
                "num_epochs must not be negative and batch_size must be at least 1, "
                f"got {self.num_epochs} and {self.batch_size}"
            )


@dataclass(frozen=True)
class GeneratorConfig:
    """Supervised training of vision tower, language model and generation expert (complementary masking)."""

    num_epochs: int = 12
    """0 leaves all but the refinement expert as it is, for a checkpoint."""
    batch_size: int = 64
    """Scenes per step."""
    pairs_per_scene: int = 1
    """Complementary pairs of masked answers per scene and step; they share the scene's image and prompt. A
    diffusion head is given so many noised trajectories; an autoregressive model reads each answer once."""
    train_language: bool = True
    """Whether the language model learns too. False only for `model.decoder=diffusion_head`, whose head can
    learn alone."""
    train_vision: bool = True
    """Whether tower and projector learn too. Not for a tower that has just been through `perception`: few
    trajectories cannot keep what it has learned to see, and a frozen one costs half as much."""
    noise: NoiseName = "bernoulli"
    """How slots are masked, see `sample_masks`."""
    loss_weight: LossWeightName = "uniform"
    """How slots are weighted, see `masked_pair_weights`."""
    label_smoothing_bins: float = 0.0
    """Width of the targets [bins], see `answer_cross_entropy`."""
    average_decay: float = 0.0
    """Of the running average of the weights; 0 keeps the last iterate."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name, least in (("num_epochs", 0), ("batch_size", 1), ("pairs_per_scene", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class RefinerConfig:
    """Warm start of the refinement expert on spoilt demonstrations; everything else is frozen."""

    num_epochs: int = 1
    """0 leaves the refinement expert a copy of the generation expert's last blocks."""
    batch_size: int = 64
    """Scenes per step."""
    rows_per_scene: int = 5
    """Spoilt answers per scene and step; 5 gives every batch the exact shares."""
    shares: tuple[float, ...] = DEFAULT_SHARES
    """Of identity, own sample, outlier, drift."""
    min_temperature: float = 0.7
    max_temperature: float = 1.2
    """Own samples are decoded at a temperature drawn uniformly from this range for each step."""
    num_denoising_steps: int = 12
    """Of the own samples."""
    label_smoothing_bins: float = 0.0
    average_decay: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name, least in (("num_epochs", 0), ("batch_size", 1), ("rows_per_scene", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.min_temperature <= self.max_temperature:
            raise ValueError(
                "expected 0 < min_temperature <= max_temperature, "
                f"got {self.min_temperature} and {self.max_temperature}"
            )


@dataclass(frozen=True)
class SourceConfig:
    """One source of training examples, see docs/data.md."""

    kind: Literal["navsim", "recogdrive_trajectories", "recogdrive_qa"]
    """A split of NAVSIM's logs; or a JSON-lines file of trajectories, or of questions in words."""
    path: str | None = None
    """Of the file; of a `navsim` source a split's name or YAML, None: train_test_split."""
    ratio: float = 1.0
    """Share of the examples that come from here, in proportion to the other sources' ratios. An epoch is one
    pass over the first source."""
    image_root: str | None = None
    """Folder that a file's image paths are relative to."""
    image_prefix: str | None = None
    """Leading folders of a file's image paths that `image_root` stands for; None: none."""
    spread_rounding: bool = True
    """Of trajectories in text: move every number to a random place of the interval that was rounded to it
    (`driving_text.spread_rounding`), the same one for a line in every run."""

    def __post_init__(self) -> None:
        """Checks ranges and what goes together."""
        if not self.ratio > 0:
            raise ValueError(f"a source's ratio must be positive, got {self.ratio} for {self.path}")
        if self.kind == "navsim":
            if self.image_root is not None or self.image_prefix is not None:
                raise ValueError(
                    "a source of kind navsim finds its images by the dataset's paths: leave image_root and "
                    f"image_prefix out, got {self.image_root} and {self.image_prefix}"
                )
        elif self.path is None or self.image_root is None:
            raise ValueError(
                f"a source of kind {self.kind} needs path and image_root, "
                f"got {self.path} and {self.image_root}"
            )


@dataclass(frozen=True)
class DataConfig:
    """What the generator and the refiner learn from, and how it is brought to them."""

    sources: tuple[SourceConfig, ...] = ()
    """Mixed by their ratios; questions in words are for the generator only. None given: train_test_split."""
    num_workers: int = 0
    """Processes that prepare batches; changes nothing but the time. 0: the training process itself, which is
    faster for small cached images."""
    prefetch: int = 2
    """Batches that each worker prepares ahead."""
    cache_tiles: bool = True
    """Keep decoded images on disk. False: decode them when needed; for sets too large for the disk."""
    visual_cache: VisualType | None = None
    """Keep the tokens that the frozen vision tower makes of each image, on disk, in this type."""
    answer_lengths: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Slots of answers in words: the fewest that hold answer and end are taken; longer answers are cut."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.num_workers < 0 or self.prefetch < 1:
            raise ValueError(
                "num_workers must not be negative and prefetch must be at least 1, "
                f"got {self.num_workers} and {self.prefetch}"
            )
        rising = sorted(set(self.answer_lengths))
        if list(self.answer_lengths) != rising or not rising or rising[0] < 1:
            raise ValueError(f"answer_lengths must be positive and rising, got {list(self.answer_lengths)}")
        if self.sources and all(source.kind == "recogdrive_qa" for source in self.sources):
            raise ValueError("data.sources needs trajectories, got questions in words only")

    @property
    def uses_split(self) -> bool:
        """Whether train_test_split is among the sources."""
        return not self.sources or any(s.kind == "navsim" and s.path is None for s in self.sources)

    @property
    def ratios(self) -> tuple[float, ...]:
        """(S,) of the sources."""
        return tuple(source.ratio for source in self.sources) or (1.0,)


@dataclass(frozen=True)
class RunConfig:
    """Everything else about a run."""

    seed: int = 0
    """Of initialisation, order, masks, augmentation and samples: all of them follow from it."""
    device: str = "cpu"
    num_threads: int | None = None
    """Torch's threads; None: all cores."""
    deterministic: bool = False
    """Only kernels that give the same bits each time, on a GPU too; slower there."""
    checkpoint_every: int = 200
    """Optimizer steps between checkpoints; one more is written at each phase's end."""
    log_every: int = 10
    """Optimizer steps between entries in TensorBoard."""
    validate_every_epochs: int = 1
    num_denoising_steps: int = 12
    """Of the held-out planning metric."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("checkpoint_every", "log_every", "validate_every_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainSFTConfig:
    """Configuration of `tools/train_sft.py`."""

    output_dir: str
    """The run's folder: checkpoints, TensorBoard, and at the end `model/`."""
    experiment_name: str = "drivefine_sft"
    """NAVSIM's key; part of the default output_dir."""
    train_test_split: str = "world_train"
    """Split to learn from: a name below the dataset's `splits`, or the path of its YAML."""
    validation_split: str = "world_val"
    """Split to hold out."""
    allow_test_split: bool = False
    """First consent to learning from test data, see `split_guard.py`."""
    i_train_on_test_tokens_of: str | None = None
    """Second consent: the test split."""
    dataset_root: str | None = None
    """Folder with navsim_logs, sensor_blobs and splits; None: OPENSCENE_DATA_ROOT."""
    splits_path: str | None = None
    """Folder with train_test_split/<name>.yaml; None: `splits` of the dataset."""
    max_scenes: int | None = None
    """Use only so many training scenes, evenly spread."""
    max_validation_scenes: int | None = 256
    """Use only so many validation scenes, evenly spread."""
    tile_cache_path: str | None = None
    """Where image tiles are kept between runs; None: `tiles` in output_dir."""
    model: ModelChoice = field(default_factory=ModelChoice)
    perception: PerceptionConfig = field(default_factory=PerceptionConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        """Checks what goes together."""
        if self.generator.num_epochs == 0 and self.model.init_from is None:
            raise ValueError(
                "generator.num_epochs=0 needs model.init_from, got none: a refiner cannot learn from "
                "random weights"
            )
        if self.model.decoder not in (None, "masked") and any(
            source.kind == "recogdrive_qa" for source in self.data.sources
        ):
            raise ValueError(
                "answers in words are learned by masked diffusion: data.sources must not hold recogdrive_qa "
                f"with model.decoder={self.model.decoder}"
            )
        if not self.generator.train_language and self.model.decoder not in (None, "diffusion_head"):
            raise ValueError(
                "generator.train_language=false leaves only a diffusion head to train, "
                f"got model.decoder={self.model.decoder}"
            )
        if self.data.visual_cache is None:
            return
        if self.generator.train_vision:
            raise ValueError(
                "data.visual_cache keeps the tokens of a frozen vision tower, got "
                "generator.train_vision=true: set it to false, or data.visual_cache=null"
            )
        for name, augmentation in (
            ("generator", self.generator.augmentation),
            ("refiner", self.refiner.augmentation),
        ):
            if augmentation.changes_images:
                raise ValueError(
                    f"data.visual_cache keeps the tokens of images as recorded, got {name}.augmentation with "
                    f"mirror_probability {augmentation.mirror_probability} and light_jitter "
                    f"{augmentation.light_jitter}: set both to 0, or data.visual_cache=null"
                )

    @property
    def paths(self) -> DatasetPaths:
        """The dataset's folders."""
        return dataset_paths(self.dataset_root, self.splits_path)


def dataset_paths(dataset_root: str | None, splits_path: str | None) -> DatasetPaths:
    """A dataset's folders: below a root, or where NAVSIM's environment variables say.

    Args:
      dataset_root: None: OPENSCENE_DATA_ROOT.
      splits_path: None: `splits` of the dataset.
    """
    paths = DatasetPaths.from_environment() if dataset_root is None else DatasetPaths.from_root(dataset_root)
    return paths if splits_path is None else replace(paths, splits=Path(splits_path))
