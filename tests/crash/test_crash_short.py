"""The crash harness in short: one real hit on each of four commands, and proof that its checks can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash_commands import COMMANDS, MayDiffer, last_of_each_step
from harness import Harness, HitError, check_halves, check_same, table

WORLD = COMMANDS["make_world"]


SHORT = ["make_world", "build_scene_cache", "train_sft", "evaluate"]


@pytest.mark.slow
def test_what_is_killed_and_resumed_ends_like_an_undisturbed_run(tmp_path: Path) -> None:
    """A world, a cache, a training and an evaluation, each killed once."""
    harness = Harness(tmp_path, SHORT, hits=("kill_group", "kill_main", "terminate"))
    harness.prepare(num_runs=1)
    for number in range(len(SHORT)):
        record = harness.hit(number)
        while record["outcome"] == "missed":  # it had ended before its moment
            number += len(SHORT)
            record = harness.hit(number)
        assert record["outcome"] == "ok", record
        assert record["command"] == SHORT[number % len(SHORT)]


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
    assert {e.pattern for e in exceptions if e.normalise is None} == {"*.lock", "tensorboard/*"}


def test_a_step_that_differs_is_seen_through_repeated_ones() -> None:
    first, again = b'{"step": 1, "loss": 1.0, "time/a": 3}\n', b'{"step": 1, "loss": 1.0, "time/a": 4}\n'
    assert last_of_each_step(first + again) == last_of_each_step(first)
    assert last_of_each_step(first) != last_of_each_step(b'{"step": 1, "loss": 1.5, "time/a": 3}\n')
