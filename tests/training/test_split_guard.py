"""Test data as training scenes: refused, unless told twice, however they are named."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.data.split_writer import write_split
from drivefine_agent.data.splits import Split, load_log_lists, load_split
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.job import training_data_of
from drivefine_agent.provenance import (
    all_training_data,
    as_record,
    describe_size,
    parent_record,
    seen_test_splits,
    training_data,
    write_card,
)
from drivefine_agent.training.scenes import SplitScenes, load_split_scenes
from drivefine_agent.training.split_guard import Samples, check_sources, check_splits

SPLIT = "synth_one_stage"  # 24 samples, 6 of each of 4 logs, in the folder `test`


@dataclass(frozen=True)
class Consent:
    allow_test_split: bool = False
    i_train_on_test_tokens_of: str | None = None


NONE = Consent()


@pytest.fixture(scope="module")
def splits(navsim_mini: Path) -> Split:
    return load_split(SPLIT, [navsim_mini / "splits"])


@pytest.fixture
def dataset(navsim_mini: Path, tmp_path: Path) -> Path:
    """The same logs as training logs, and no splits yet."""
    root = tmp_path / "dataset"
    shutil.copytree(navsim_mini / "navsim_logs" / "test", root / "navsim_logs" / "trainval")
    return root


def add_split(
    root: Path, name: str, split: Split, tokens: tuple[str, ...] | None, data_split: str = "trainval"
) -> None:
    """Writes a split with other tokens."""
    write_split(root / "splits", Split(name, data_split, replace(split.scene_filter, tokens=tokens)))


def loaded(root: Path, name: str) -> tuple[SplitScenes, DatasetPaths]:
    paths = DatasetPaths.from_root(root)
    return load_split_scenes(paths, name, show_progress=False), paths


def without_logs(split: Split) -> Split:
    """Lists tokens only."""
    return replace(split, scene_filter=replace(split.scene_filter, log_names=None))


# ------------------------------------------------------------------------------------------ test data


@pytest.mark.parametrize("name", ["navtest", "navhard_two_stage", "warmup_two_stage", "test", "world_test"])
def test_a_test_split_is_refused_by_its_name(dataset: Path, splits: Split, name: str) -> None:
    add_split(dataset, name, splits, splits.scene_filter.tokens or ())
    with pytest.raises(DataError) as error:
        check_splits(loaded(dataset, name)[0], None, loaded(dataset, name)[1], NONE)
    message = str(error.value)
    assert f"the split {name!r} has some" in message
    assert "such as navtrain" in message
    assert f"allow_test_split=true i_train_on_test_tokens_of={name}" in message


def test_a_split_of_unknown_name_is_refused_by_its_folder(navsim_mini: Path) -> None:
    scenes, paths = loaded(navsim_mini, SPLIT)
    with pytest.raises(
        DataError, match=r"its logs lie in the folder test: .*i_train_on_test_tokens_of=synth_one"
    ):
        check_splits(scenes, None, paths, NONE)


@pytest.mark.parametrize(
    ("consent", "got"),
    [
        (Consent(allow_test_split=True), r"\(got allow_test_split=true\)"),
        (Consent(i_train_on_test_tokens_of=SPLIT), f"got allow_test_split=false, i_train_on.*={SPLIT}"),
        (Consent(True, "navtest"), "got allow_test_split=true, i_train_on_test_tokens_of=navtest"),
    ],
)
def test_one_consent_is_not_enough(navsim_mini: Path, consent: Consent, got: str) -> None:
    scenes, paths = loaded(navsim_mini, SPLIT)
    with pytest.raises(DataError, match=got):
        check_splits(scenes, None, paths, consent)
    check = check_splits(scenes, None, paths, Consent(True, SPLIT))
    assert "TRAINING ON TEST DATA" in check.warnings[0]
    assert SPLIT in check.training_data("sft").test_data


def test_tokens_of_a_test_split_are_found_under_another_name(dataset: Path, splits: Split) -> None:
    """Two of mine's nine tokens are navtest's; neither names logs, so nothing but tokens can tell."""
    tokens = splits.scene_filter.tokens or ()
    add_split(dataset, "mine", without_logs(splits), tokens[:9])
    add_split(dataset, "navtest", without_logs(splits), tokens[7:], "test")
    scenes, paths = loaded(dataset, "mine")
    with pytest.raises(DataError, match=r"'mine' has some: navtest \(2 of its tokens, 0 of its logs\)"):
        check_splits(scenes, None, paths, Consent(True, "mine"))
    by_path, _ = loaded(dataset, str(dataset / "splits" / "train_test_split" / "mine.yaml"))
    with pytest.raises(DataError, match="navtest"):
        check_splits(by_path, None, paths, NONE)
    data = check_splits(scenes, None, paths, Consent(True, "navtest")).training_data("sft")
    assert dict(data.test_data) == {"navtest": "2 of its tokens, 0 of its logs"}


def test_other_frames_of_a_test_drive_are_found(dataset: Path, splits: Split) -> None:
    """No token in common, but both splits name the same four logs."""
    tokens = splits.scene_filter.tokens or ()
    add_split(dataset, "mine", splits, tokens[::2])
    add_split(dataset, "navhard_two_stage", splits, tokens[1::2], "test")
    scenes, paths = loaded(dataset, "mine")
    with pytest.raises(DataError, match=r"navhard_two_stage \(0 of its tokens, 4 of its logs\)"):
        check_splits(scenes, None, paths, NONE)


def test_logs_that_also_lie_among_the_test_logs_are_found(dataset: Path, splits: Split) -> None:
    """No split file tells, but the folder of test logs has one by the same name."""
    add_split(dataset, "mine", splits, splits.scene_filter.tokens or ())
    log = sorted((dataset / "navsim_logs" / "trainval").glob("*.pkl"))[0]
    (dataset / "navsim_logs" / "test").mkdir()
    (dataset / "navsim_logs" / "test" / log.name).touch()
    scenes, paths = loaded(dataset, "mine")
    with pytest.raises(DataError, match=r"navsim_logs/test \(1 logs of the same name there"):
        check_splits(scenes, None, paths, NONE)


def test_navsims_own_splits_are_compared_and_can_be_trained_on(
    dataset: Path, splits: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through NAVSIM_DEVKIT_ROOT, where the dataset has no splits of its own."""
    tokens = splits.scene_filter.tokens or ()
    devkit = tmp_path / "devkit"
    monkeypatch.setenv("NAVSIM_DEVKIT_ROOT", str(devkit))
    own = devkit / "navsim" / "planning" / "script" / "config" / "common"
    write_split(own, replace(without_logs(splits), name="navtrain", data_split="trainval"))
    scenes, paths = loaded(dataset, "navtrain")
    assert len(scenes.windows) == 24
    assert not check_splits(scenes, None, paths, NONE).test_data
    one = replace(splits.scene_filter, tokens=tokens[:1], log_names=None)
    write_split(own, Split("navtest", "test", one))
    # Of NAVSIM 1.1's warm-up split most samples are navtrain's: it accuses nobody.
    write_split(own, replace(splits, name="warmup_test_e2e", data_split="mini"))
    with pytest.raises(DataError, match=r"has some: navtest \(1 of its tokens, 0 of its logs\)\. "):
        check_splits(scenes, None, paths, NONE)


def test_a_split_file_that_cannot_be_read_is_named(dataset: Path, splits: Split) -> None:
    add_split(dataset, "mine", splits, splits.scene_filter.tokens or ())
    (dataset / "splits" / "train_test_split" / "navtest.yaml").write_text("data_split: test\nsurprise: 1\n")
    scenes, paths = loaded(dataset, "mine")
    (warning,) = check_splits(scenes, None, paths, NONE).warnings
    assert "not compared with the split navtest" in warning
    assert "surprise" in warning


# ------------------------------------------------------------------------------------------ held-out scenes


def test_held_out_scenes_of_another_split_must_not_be_trained_on(dataset: Path, splits: Split) -> None:
    tokens = splits.scene_filter.tokens or ()
    for name, part in (("mine", tokens[:9]), ("other", tokens[8:]), ("rest", tokens[9:])):
        add_split(dataset, name, splits, part)
    (mine, paths), other, rest = (
        loaded(dataset, "mine"),
        loaded(dataset, "other")[0],
        loaded(dataset, "rest")[0],
    )
    with pytest.raises(
        DataError, match=f"1 of the 16 of 'other' are among those of 'mine', such as {tokens[8]!r}"
    ):
        check_splits(mine, other, paths, NONE)
    assert "share 4 logs" in check_splits(mine, rest, paths, NONE).warnings[0]
    check = check_splits(mine, mine, paths, NONE)  # the same name twice is a choice
    assert "mine is trained on and validated on: 9 of the 9" in check.warnings[0]
    assert check.validation is not None
    assert check.validation["num_tokens_in_training"] == 9


def test_held_out_test_data_are_allowed_with_a_warning(dataset: Path, splits: Split) -> None:
    logs = splits.scene_filter.log_names or ()
    for name, part in (("mine", logs[:2]), ("navtest", logs[2:])):
        scene_filter = replace(splits.scene_filter, log_names=part)
        add_split(dataset, name, replace(splits, scene_filter=scene_filter), None)
    mine, paths = loaded(dataset, "mine")
    check = check_splits(mine, loaded(dataset, "navtest")[0], paths, NONE)
    (warning,) = check.warnings
    assert "held-out scenes are test data: navtest (the test split of NAVSIM 1" in warning
    assert "Do not choose a model" in warning
    assert check.validation is not None
    assert "navtest" in check.validation["test_data"]


# ------------------------------------------------------------------------------------------ the record


def test_the_record_counts_and_hashes_the_tokens(navsim_mini: Path, splits: Split) -> None:
    paths = DatasetPaths.from_root(navsim_mini)
    scenes = load_split_scenes(paths, SPLIT, max_scenes=6, show_progress=False)
    check = check_splits(scenes, None, paths, Consent(True, SPLIT))
    used = [window.token for window in scenes.windows][:4]
    data = check.training_data("grpo", used[::-1], "scenes that cannot be scored")
    assert (data.split, data.num_tokens, data.num_split_tokens) == (SPLIT, 4, 24)
    assert dict(data.left_out) == {"max_scenes": 18, "scenes that cannot be scored": 2}
    assert data.tokens_sha256 == hashlib.sha256("\n".join(sorted(used)).encode()).hexdigest()
    assert data.checked_against == ("synth_one_stage", "synth_two_stage")


def test_known_sizes_are_named() -> None:
    assert describe_size(103_288).startswith("103,288 tokens (as many as all of navtrain, 1,192 logs")
    assert describe_size(85_109).startswith(
        "85,109 tokens (as many as navtrain has in NAVSIM's train_logs, 978"
    )
    assert describe_size(85_108) == "85,108 tokens"


# ------------------------------------------------------------------------------------------ dividing a split


def test_a_split_is_divided_by_lists_of_logs(
    navsim_mini: Path, splits: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logs 1 and 2 are for training, 3 for validation, 4 for neither: 6 samples each."""
    logs = splits.scene_filter.log_names or ()
    lists = tmp_path / "lists.yaml"
    lists.write_text(yaml.safe_dump({"train_logs": [*logs[:2], "elsewhere"], "val_logs": [logs[2]]}))
    output = tmp_path / "splits"
    path = Path(__file__).parents[2] / "tools" / "split_off_validation.py"
    spec = importlib.util.spec_from_file_location("split_off_validation", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    overrides = [
        f"train_test_split={SPLIT}",
        f"dataset_root={navsim_mini}",
        f"log_lists={lists}",
        f"output={output}",
    ]
    with initialize_config_dir(str(path.parents[1] / "navsim_configs"), version_base="1.3"):
        script.split_off_validation(compose("split_off_validation", overrides))
    printed = capsys.readouterr().out
    assert f"{SPLIT}_train: 12 tokens, 2 logs" in printed
    assert "left out: 6 tokens" in printed
    paths = DatasetPaths.from_root(navsim_mini)
    paths = replace(paths, splits=output)
    training, held_out = (
        load_split_scenes(paths, f"{SPLIT}_{part}", show_progress=False) for part in ("train", "val")
    )
    assert {window.log_name for window in training.windows} == set(logs[:2])
    assert {window.log_name for window in held_out.windows} == {logs[2]}
    assert (len(training.windows), len(held_out.windows)) == (12, 6)
    check = check_splits(training, held_out, paths, Consent(True, f"{SPLIT}_train"))
    assert check.validation is not None
    assert (check.validation["num_tokens_in_training"], check.validation["num_logs_in_training"]) == (0, 0)


def test_lists_of_logs_that_overlap_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lists.yaml").write_text("train_logs: [a, b]\nval_logs: [b]\n")
    with pytest.raises(DataError, match="must not overlap, got 'b' in both"):
        load_log_lists(tmp_path / "lists.yaml")


def test_a_file_that_names_neither_tokens_nor_logs_is_refused(tmp_path: Path) -> None:
    unknown = Samples("qa.jsonl", frozenset(), frozenset())
    with pytest.raises(DataError, match="cannot be compared"):
        check_sources([unknown], None, DatasetPaths.from_root(tmp_path), Consent())


def test_scenes_of_two_sources_are_counted_once() -> None:
    split = Samples("navtrain", frozenset("abc"), frozenset({"log"}), num_listed=5)  # two by max_scenes
    file = Samples("qa.jsonl", frozenset("abc"), frozenset({"log"}), num_listed=3)
    both = Samples.union([split, file])
    assert (len(both.tokens), both.num_listed) == (3, 5)


def test_what_a_learned_scorer_saw_counts_for_what_it_chooses_and_reinforces(tmp_path: Path) -> None:
    """A clean model, and a scorer that saw navtest: plans it chooses and models it reinforces say so."""
    records = {
        stage: as_record(training_data(stage, "mine", ["a"], 1, {}, test_data, ()))
        for stage, test_data in (("sft", {}), ("scorer", {"navtest": "all"}), ("hybrid", {}))
    }
    model, scorer = tmp_path / "model", tmp_path / "scorer"
    write_card(model, {"data": records["sft"], "parent": None})
    write_card(scorer, {"data": records["scorer"], "parent": parent_record(model)})
    reinforced = {
        "data": records["hybrid"],
        "parent": parent_record(model) | {"scorer": parent_record(scorer)},
    }
    assert all_training_data(reinforced) == [records["sft"], records["scorer"], records["hybrid"]]
    assert seen_test_splits(all_training_data(reinforced)) == ["navtest"]

    agent = {"checkpoint_path": str(model), "selection": "scorer", "scorer_path": str(scorer)}
    assert training_data_of({"agent": agent}) == [records["sft"], records["scorer"]]
    assert training_data_of({"agent": agent | {"selection": "consensus"}}) == [records["sft"]]
    (scorer / "provenance.json").unlink()  # not recorded is not clean
    assert training_data_of({"agent": agent}) == [records["sft"], None]
