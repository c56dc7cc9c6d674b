"""The crash harness in short: a real hit on each of four commands, and several at once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from crash_commands import COMMANDS, OUT, MayDiffer, last_of_each_step
from harness import Harness, HitError, Running, check_halves, check_same, table

from drivefine_agent.data.folder_lock import LOCK_NAME, FolderLock

WORLD = COMMANDS["make_world"]
SHORT = ["make_world", "build_scene_cache", "train_sft", "evaluate"]
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """With undisturbed runs of four commands."""
    made = Harness(tmp_path_factory.mktemp("harness"), SHORT, hits=("kill_group", "kill_main", "terminate"))
    made.prepare(num_runs=1)
    return made


@SLOW
@pytest.mark.parametrize("number", range(len(SHORT)), ids=SHORT)
def test_what_is_killed_and_resumed_ends_like_an_undisturbed_run(number: int, harness: Harness) -> None:
    record = harness.hit(number)
    while record["outcome"] == "missed":  # it had ended before its moment
        number += len(SHORT)
        record = harness.hit(number)
    assert record["outcome"] == "ok", record
    assert record["command"] == SHORT[number % len(SHORT)]


@SLOW
@pytest.mark.parametrize("name", SHORT)
def test_a_second_process_is_refused(name: str, harness: Harness, tmp_path: Path) -> None:
    with FolderLock(tmp_path / OUT):
        running = Running(COMMANDS[name], harness.shared, tmp_path, tmp_path / "log.txt")
        assert running.main.wait(60) != 0
        assert [path.name for path in (tmp_path / OUT).iterdir()] == [LOCK_NAME]
    last = (tmp_path / "log.txt").read_text().strip().splitlines()[-1]
    assert f"a second one for {OUT}, which is in use by process {os.getpid()} on" in last.replace(
        str(tmp_path) + "/", ""
    )
    assert "choose another folder" in last


@SLOW
@pytest.mark.parametrize("name", ["build_scene_cache", "evaluate"])
def test_processes_that_race_give_one_good_result(name: str, harness: Harness, tmp_path: Path) -> None:
    """Each of three ends well or is refused, at least one ends well, and what lies there is whole."""
    command, logs = COMMANDS[name], [tmp_path / f"log_{i}.txt" for i in range(3)]
    racing = [Running(command, harness.shared, tmp_path, log) for log in logs]
    codes = [running.main.wait(120) for running in racing]
    assert 0 in codes
    for code, log in zip(codes, logs, strict=True):
        assert code == 0 or "one process at a time may write into a folder" in log.read_text()
    check_same(tmp_path / OUT, harness.shared / name / OUT, command)


@SLOW
def test_trainings_that_fill_one_image_cache_learn_the_same(harness: Harness, tmp_path: Path) -> None:
    tiles, command = tmp_path / "tiles", COMMANDS["train_sft"]
    shared = replace(command, arguments=lambda data: [*command.arguments(data), f"tile_cache_path={tiles}"])
    folders = [tmp_path / "first", tmp_path / "second"]
    racing = []
    for folder in folders:
        folder.mkdir()
        racing.append(Running(shared, harness.shared, folder, folder / "log.txt"))
    assert [running.main.wait(120) for running in racing] == [0, 0]
    weights = Path(OUT) / "model" / "model.safetensors"
    expected = (harness.shared / "train_sft" / weights).read_bytes()
    assert [(folder / weights).read_bytes() == expected for folder in folders] == [True, True]
    kept = {path.name: path.read_bytes() for path in (harness.shared / "train_sft" / OUT / "tiles").iterdir()}
    assert {path.name: path.read_bytes() for path in tiles.iterdir()} == kept


def test_the_table_counts_hits_of_each_kind_and_what_missed() -> None:
    record = {"command": "make_world", "kind": "kill_main", "outcome": "ok", "second": None}
    text = table([record, record, record | {"outcome": "half_written"}, record | {"outcome": "missed"}])
    assert text.startswith("3 hits, of them 2 ok")
    assert "1 more came when nothing was left to hit" in text
    assert "| make_world | - | 1 half_written, 2 ok | - |" in text


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("out", "reference"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.json").write_text('{"x": 1}')
    return tmp_path / "out", tmp_path / "reference"


def test_half_a_file_is_found(folders: tuple[Path, Path]) -> None:
    out, reference = folders
    check_halves(out, reference, WORLD)
    (out / ".a.json.host.1.00000000.part").write_text('{"x"')  # not under a final name
    check_halves(out, reference, WORLD)
    (out / "a.json").write_text('{"x": 2}')  # of an earlier step: whole
    check_halves(out, reference, WORLD)
    (out / "a.json").write_text('{"x"')
    with pytest.raises(HitError, match=r"half_written: a\.json"):
        check_halves(out, reference, WORLD)


def test_other_bytes_and_files_are_found(folders: tuple[Path, Path]) -> None:
    out, reference = folders
    check_same(out, reference, WORLD)
    (out / "a.json").write_text('{"x": 2}')
    with pytest.raises(HitError, match=r"other_bytes: a\.json"):
        check_same(out, reference, WORLD)
    (out / "a.json").unlink()
    with pytest.raises(HitError, match=r"other_files: missing \['a\.json'\]"):
        check_same(out, reference, WORLD)


def test_every_exception_has_a_reason_and_few_are_ignored() -> None:
    exceptions: set[MayDiffer] = {e for command in COMMANDS.values() for e in command.exceptions}
    assert all(e.reason for e in exceptions)
    ignored = {e.pattern for e in exceptions if e.normalise is None}
    assert ignored == {"*.lock", "tensorboard/*", "*.log", "tiles/*", "outcomes/*.jsonl"}


def test_a_step_that_differs_is_seen_through_repeated_ones() -> None:
    first, again = b'{"step": 1, "loss": 1.0, "time/a": 3}\n', b'{"step": 1, "loss": 1.0, "time/a": 4}\n'
    assert last_of_each_step(first + again) == last_of_each_step(first)
    assert last_of_each_step(first) != last_of_each_step(b'{"step": 1, "loss": 1.5, "time/a": 3}\n')
