"""Training refuses test data unless told twice, and says aloud when it obeys.

What is test data is looked up three ways: by the split's name, by its folder of logs, and by comparing tokens
and logs with every test split whose file is at hand, those of the dataset and, with NAVSIM_DEVKIT_ROOT, those
of NAVSIM. A log counts as a whole: samples of one drive are frames of the same seconds.

NAVSIM's rules: no training on test, navtest, navhard, warm-up or private data (its docs/splits.md).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from drivefine_agent.data.dataset_paths import DatasetPaths, navsim_split_folders
from drivefine_agent.data.splits import data_split_of, load_split, split_files
from drivefine_agent.errors import DataError
from drivefine_agent.provenance import TrainingData, describe_size, training_data
from drivefine_agent.training.scenes import SplitScenes

LOGGER = logging.getLogger(__name__)

_NUM_LISTED = 3  # test splits that a message lists; the card has all

TEST_FOLDERS = {
    "test": "OpenScene's test logs",
    "private_test_e2e": "logs of NAVSIM's 2024 leaderboard",
    "private_test_hard": "logs of NAVSIM's 2025 leaderboard",
}
"""Folders of logs (`data_split`) that nobody trains on."""

TEST_SPLITS = {
    "test": "all of OpenScene's test logs",
    "navtest": "the test split of NAVSIM 1 and its 2024 leaderboard",
    "navtest_two_stage": "navtest, for two stages",
    "navhard_two_stage": "the test split of NAVSIM 2",
    "navsafe_two_stage": "an earlier form of navhard",
    "warmup_two_stage": "the split of NAVSIM's 2025 warm-up leaderboard",
    "warmup_navsafe_two_stage_extended": "an earlier form of the warm-up split",
    "private_test_e2e": "the split of NAVSIM's 2024 leaderboard",
    "private_test_hard_two_stage": "the split of NAVSIM's 2025 leaderboard",
    "world_test": "the synthetic world's test split",
    "world_two_stage": "the synthetic world's test split for two stages",
}

MIXED_SPLITS = {
    "mini": "made of training and test drives: 10 of navmini's 62 logs, all in its folder, are navtest's",
    "navmini": "made of training and test drives: 10 of its 62 logs are navtest's",
    "warmup_test_e2e": "made of training and test drives: 10 of its 62 logs are navtest's",
}
"""Refused as training splits, but of no account in comparisons: most of their samples are navtrain's, on
which NAVSIM itself trains (446 of warmup_test_e2e's 563). Counted in the YAML files of NAVSIM 1.1 and 2.2."""


class HasConsent(Protocol):
    """The two keys of a training script's configuration."""

    @property
    def allow_test_split(self) -> bool:
        """The first consent."""

    @property
    def i_train_on_test_tokens_of(self) -> str | None:
        """The second: names the test split."""


@dataclass(frozen=True)
class Samples:
    """Samples by name."""

    name: str
    """Of the split, or of whatever holds them."""
    tokens: frozenset[str]
    logs: frozenset[str]
    data_split: str = ""
    """Folder of the logs, where it is known."""
    num_listed: int = 0
    """Samples of the whole split: those it lists; if it lists none, those that were found."""

    @classmethod
    def of(cls, scenes: SplitScenes) -> Samples:
        """Those of a split. Logs by the frames, and by the files, should someone have renamed them."""
        files = {window.log_path.stem for window in scenes.windows if window.log_path is not None}
        return cls(
            scenes.name,
            frozenset(window.token for window in scenes.windows),
            frozenset(files | {window.log_name for window in scenes.windows}),
            scenes.data_split,
            scenes.num_listed,
        )

    @classmethod
    def union(cls, sources: Sequence[Samples]) -> Samples:
        """Those of several sources, the names joined."""
        if len(sources) == 1:
            return sources[0]
        tokens = frozenset(token for samples in sources for token in samples.tokens)
        num_left_out = sum(samples.num_listed - len(samples.tokens) for samples in sources)  # by max_scenes
        return cls(
            " + ".join(samples.name for samples in sources),
            tokens,
            frozenset(log for samples in sources for log in samples.logs),
            num_listed=len(tokens) + num_left_out,
        )


@dataclass(frozen=True)
class SplitCheck:
    """What the guard found, for the log and for the checkpoints' card."""

    split: Samples
    """The training scenes."""
    test_data: Mapping[str, str] = field(default_factory=dict)
    """Test split -> what of it the training scenes hold; not empty only with both consents."""
    checked_against: tuple[str, ...] = ()
    """Test splits whose tokens and logs were compared."""
    validation: Mapping[str, Any] | None = None
    """Of the held-out split: name, number of tokens, how many of them are trained on, test data in it."""
    warnings: tuple[str, ...] = ()

    def log_warnings(self) -> None:
        """Says what deserves a look; with several processes, call it on one."""
        for warning in self.warnings:
            LOGGER.warning(warning)

    def training_data(
        self, stage: str, tokens: Sequence[str] | None = None, why_left_out: str = ""
    ) -> TrainingData:
        """The record for the card.

        Args:
          stage: of training.
          tokens: of the scenes that are used, if not all of them are.
          why_left_out: what keeps the others out.
        """
        found = self.split.tokens
        used = found if tokens is None else tokens
        return training_data(
            stage,
            self.split.name,
            used,
            self.split.num_listed,
            {"max_scenes": self.split.num_listed - len(found), why_left_out: len(found) - len(used)},
            self.test_data,
            self.checked_against,
        )


def log_training_data(data: TrainingData) -> None:
    """One line: split, tokens, what was left out, what was compared."""
    left_out = "".join(f", {count:,} left out by {reason}" for reason, count in data.left_out.items())
    LOGGER.info(
        "training tokens: %s, %s of the split's %s%s; compared with test splits: %s",
        data.split,
        describe_size(data.num_tokens),
        f"{data.num_split_tokens:,}",
        left_out,
        ", ".join(data.checked_against) or "none at hand (NAVSIM_DEVKIT_ROOT would give NAVSIM's)",
    )


def check_splits(
    training: SplitScenes, held_out: SplitScenes | None, paths: DatasetPaths, consent: HasConsent
) -> SplitCheck:
    """Compares the scenes to learn from with test data and with the scenes held out.

    Test data as held-out scenes are allowed with a warning: to look at is not to learn from, unless a model
    or a setting is chosen by the figures. One split under both names is taken for a choice and warned of; two
    splits that share tokens, for a mistake.

    Args:
      training: scenes to learn from.
      held_out: scenes to validate on, of scripts that do.
      paths: of the dataset.
      consent: the script's configuration.

    Raises:
      DataError: there are test data among the training scenes and the consents are not both given, or another
        split's held-out scenes are among them.
    """
    return check_sources([Samples.of(training)], held_out, paths, consent)


def check_sources(
    training: Sequence[Samples], held_out: SplitScenes | None, paths: DatasetPaths, consent: HasConsent
) -> SplitCheck:
    """As `check_splits`, for scenes to learn from that come from one or several sources.

    Returns:
      What was found in all of them; `split` is their union.
    """
    known, warnings = _known_test_splits([paths.splits, *navsim_split_folders()])
    learned = Samples.union(training)
    found: dict[str, str] = {}
    for samples in training:
        new = _test_data(samples, known, paths)
        found |= {name: what for name, what in new.items() if name not in found}
    warnings += _demand_consent(learned, found, consent)
    validation = None
    if held_out is not None:
        kept = Samples.of(held_out)
        validation = _compare(learned, kept)
        validation["test_data"] = seen = _test_data(kept, known, paths)
        for samples in training:
            warnings += _judge_held_out(samples, kept, _compare(samples, kept), seen)
    return SplitCheck(learned, found, tuple(sorted(known)), validation, tuple(dict.fromkeys(warnings)))


def check_samples(
    stage: str,
    samples: Samples,
    split_folders: Sequence[Path],
    paths: DatasetPaths | None,
    consent: HasConsent,
) -> TrainingData:
    """The same for samples that did not come from our own loader, as in NAVSIM's training script.

    Args:
      stage: of training, for the card.
      samples: to learn from.
      split_folders: where split files are looked for.
      paths: of the dataset, whose test logs are compared by name; None where they are not known.
      consent: of the user.

    Raises:
      DataError: there are test data among the samples and the consents are not both given.
    """
    known, warnings = _known_test_splits(split_folders)
    found = _test_data(samples, known, paths)
    for warning in [*warnings, *_demand_consent(samples, found, consent)]:
        LOGGER.warning(warning)
    tokens = sorted(samples.tokens)
    return training_data(stage, samples.name, tokens, len(tokens), {}, found, sorted(known))


# ------------------------------------------------------------------------------------------ what is test data


@dataclass(frozen=True)
class _Known:
    """Samples of a test split."""

    tokens: frozenset[str]
    logs: frozenset[str]


def _known_test_splits(folders: Sequence[Path]) -> tuple[dict[str, _Known], list[str]]:
    """Test splits whose files are at hand, by name, and warnings about those that cannot be read."""
    known: dict[str, _Known] = {}
    warnings = []
    for path in split_files(folders):
        name = path.stem
        try:
            is_test = name in TEST_SPLITS or data_split_of(path) in TEST_FOLDERS
            if name in MIXED_SPLITS or not is_test:
                continue
            scene_filter = load_split(path).scene_filter
        except DataError as error:
            warnings.append(f"the training scenes are not compared with the split {name}: {error}")
            continue
        before = known.get(name, _Known(frozenset(), frozenset()))
        listed = _Known(
            before.tokens | frozenset(scene_filter.tokens or ()),
            before.logs | frozenset(scene_filter.log_names or ()),
        )
        if listed.tokens or listed.logs:
            known[name] = listed
    return known, warnings


def _test_data(samples: Samples, known: Mapping[str, _Known], paths: DatasetPaths | None) -> dict[str, str]:
    """Test split -> what it has to do with the samples; the one that matters most first."""
    own = _own_reason(samples)
    if not samples.tokens and not samples.logs:
        own = own or "may be test data: neither tokens nor <log>/CAM_F0 folders, so it cannot be compared"
    shared = {
        name: (len(samples.tokens & split.tokens), len(samples.logs & split.logs))
        for name, split in known.items()
        if not (own and name == samples.name)
    }
    found = {samples.name: own} if own else {}
    for name, (num_tokens, num_logs) in sorted(shared.items(), key=lambda item: item[1], reverse=True):
        if num_tokens or num_logs:
            found[name] = f"{num_tokens:,} of its tokens, {num_logs:,} of its logs"
    if paths is None:
        return found
    for folder, content in TEST_FOLDERS.items():
        num_logs = len(samples.logs & {path.stem for path in paths.logs(folder).glob("*.pkl")})
        if num_logs and samples.data_split != folder:
            found[f"navsim_logs/{folder}"] = f"{num_logs:,} logs of the same name there ({content})"
    return found


def _own_reason(samples: Samples) -> str | None:
    """Why a split is test data by its name or folder."""
    reason = (TEST_SPLITS | MIXED_SPLITS).get(samples.name)
    if reason is None and samples.data_split in TEST_FOLDERS:
        return f"its logs lie in the folder {samples.data_split}: {TEST_FOLDERS[samples.data_split]}"
    return reason


def _demand_consent(training: Samples, found: Mapping[str, str], consent: HasConsent) -> list[str]:
    """The warning that is due where test data are trained on as told twice."""
    if not found:
        return []
    name = next(iter(found))
    given = [f"allow_test_split={str(consent.allow_test_split).lower()}"]
    if consent.i_train_on_test_tokens_of is not None:
        given.append(f"i_train_on_test_tokens_of={consent.i_train_on_test_tokens_of}")
    if consent.allow_test_split and consent.i_train_on_test_tokens_of == name:
        return [f"TRAINING ON TEST DATA, as told twice: {_listed(found)}. Checkpoints will say so"]
    raise DataError(
        f"training must not see test data, but the split {training.name!r} has some: {_listed(found)}. "
        "Choose another train_test_split, such as navtrain or world_train. If you mean it, say so twice: "
        f"allow_test_split=true i_train_on_test_tokens_of={name} (got {', '.join(given)}); the checkpoints "
        "and every evaluation of them will then say that they were trained on test data"
    )


def _listed(found: Mapping[str, str]) -> str:
    shown = [f"{name} ({what})" for name, what in found.items()][:_NUM_LISTED]
    return "; ".join(shown) + (f" and {len(found) - _NUM_LISTED} more" if len(found) > _NUM_LISTED else "")


# ------------------------------------------------------------------------------------------ held-out scenes


def _compare(training: Samples, held_out: Samples) -> dict[str, Any]:
    return {
        "split": held_out.name,
        "num_tokens": len(held_out.tokens),
        "num_tokens_in_training": len(training.tokens & held_out.tokens),
        "num_logs_in_training": len(training.logs & held_out.logs),
    }


def _judge_held_out(
    training: Samples, held_out: Samples, shared: Mapping[str, Any], test_data: Mapping[str, str]
) -> Iterator[str]:
    """Warnings about the held-out scenes.

    Raises:
      DataError: they are training scenes by mistake.
    """
    count, total = shared["num_tokens_in_training"], shared["num_tokens"]
    if count and training.name != held_out.name:
        token = min(training.tokens & held_out.tokens)
        raise DataError(
            f"held-out scenes must not be trained on, but {count:,} of the {total:,} of {held_out.name!r} "
            f"are among those of {training.name!r}, such as {token!r}: choose another validation_split"
        )
    if count:
        yield (
            f"{held_out.name} is trained on and validated on: {count:,} of the {total:,} held-out scenes are "
            "training scenes, so the held-out figures say nothing about other scenes"
        )
    elif shared["num_logs_in_training"]:
        yield (
            f"training and held-out scenes share {shared['num_logs_in_training']:,} logs: frames of one "
            "drive resemble each other, so the held-out figures are better than those of other drives"
        )
    if test_data:
        yield (
            f"the held-out scenes are test data: {_listed(test_data)}. Do not choose a model, a step or a "
            "setting by their figures: what is then reported on that split is no longer a test"
        )
