"""Checkpoints of reinforcement runs: complete or absent, of this configuration, portable, the same bits."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drivefine_agent.data import atomic
from drivefine_agent.errors import DataError
from drivefine_agent.planner import Planner
from rl import run_state, state_files
from rl.run_state import (
    check_same_configuration,
    find_run_state,
    resume_run_state,
    run_states,
    save_run_state,
    weights_hash,
)

sys.path.insert(0, str(Path(__file__).parent))
import engine_worker as worker
from engine_worker import Job, make_engine, make_planner, provenance
from test_engine_processes import result_of


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _saved(folder: Path, steps: int = 2) -> Path:
    worker.run(Job("single", steps=steps, folder=str(folder)))
    return run_states(folder)[-1]


def test_checkpoint_is_a_model_with_a_card(tmp_path: Path) -> None:
    checkpoint = _saved(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [
        "0000002"
    ]  # the one before is gone, nothing half done
    planner = Planner.from_pretrained(checkpoint / "model")
    result = worker.run(Job("single", steps=2))
    state = planner.model.state_dict()
    digest = hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state)))
    assert digest.hexdigest() == result["sha256"]
    card = json.loads((checkpoint / "provenance.json").read_text())
    assert card["step"] == 2
    assert card["seeds"] == {"run": 0}
    assert card["reward_weights"] == {"progress": 5.0}
    assert card["configuration"] == {"run": {"seed": 0, "batch_size": 4}}
    assert card["weights_sha256"] == weights_hash(checkpoint / "model")
    assert card["code"].keys() == {"drivefine", "torch", "git_commit", "git_is_clean"}


def test_the_hash_tells_weights_apart(tmp_path: Path) -> None:
    make_planner().save_pretrained(tmp_path / "a")
    make_planner(seed=1).save_pretrained(tmp_path / "b")
    assert weights_hash(tmp_path / "a") != weights_hash(tmp_path / "b")
    with pytest.raises(DataError, match="cannot read the weights"):
        weights_hash(tmp_path / "c")


def test_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL right after the checkpoint of step 3, in a process of its own."""
    job = Job("single", steps=5, folder=str(tmp_path / "broken"), stop_after=3, out=str(tmp_path / "out"))
    done = subprocess.run(
        [sys.executable, worker.__file__, json.dumps(asdict(job))], check=False, timeout=120
    )
    assert done.returncode == -9
    assert [path.name for path in run_states(tmp_path / "broken")] == ["0000003"]
    resumed = worker.run(Job("single", steps=5, folder=str(tmp_path / "broken")))
    unbroken = worker.run(Job("single", steps=5))
    assert len(resumed["losses"]) == 2
    assert resumed["sha256"] == unbroken["sha256"]


def test_a_run_killed_before_it_removed_the_last_checkpoint_removes_it_when_it_goes_on(
    tmp_path: Path,
) -> None:
    newest = _saved(tmp_path)
    shutil.copytree(newest, tmp_path / "0000001")
    assert len(run_states(tmp_path)) == 2
    engine = make_engine(make_planner(), Job("single"))
    resumed = resume_run_state(tmp_path, engine, provenance(Job("single")).configuration)
    assert resumed is not None
    assert resumed.folder == newest
    assert [path.name for path in tmp_path.iterdir()] == ["0000002"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "precision"),
    [("ddp", "float32"), ("fsdp2", "bfloat16"), ("zero1", "float32"), ("zero3", "bfloat16")],
)
def test_two_processes_resume_to_the_same_bits(backend: str, precision: str, tmp_path: Path) -> None:
    out, folder = tmp_path / "out.json", str(tmp_path / "checkpoints")
    unbroken = result_of(Job(backend, steps=4, precision=precision), out)
    result_of(Job(backend, steps=2, precision=precision, folder=folder), out)
    resumed = result_of(Job(backend, steps=4, precision=precision, folder=folder), out)
    assert len(resumed["losses"]) == 2
    assert resumed["sha256"] == unbroken["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [(("zero2", 2), ("single", 1)), (("single", 1), ("zero3", 2)), (("fsdp2", 2), ("zero1", 1))],
)
def test_another_backend_and_number_of_processes_go_on(
    first: tuple[str, int], second: tuple[str, int], tmp_path: Path
) -> None:
    def run(backend: str, num_processes: int, **settings: Any) -> dict[str, Any]:
        job = Job(backend, **settings)
        return worker.run(job) if backend == "single" else result_of(job, tmp_path / "out", num_processes)

    folder = str(tmp_path / "checkpoints")
    run(*first, steps=2, folder=folder)
    resumed = run(*second, steps=4, folder=folder)
    unbroken = worker.run(Job("single", steps=4))
    assert resumed["losses"] == pytest.approx(unbroken["losses"][2:], abs=2e-5)
    assert resumed["weights"] == pytest.approx(unbroken["weights"], abs=2e-3)


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path)
    engine = make_engine(make_planner(), Job("single"))
    with pytest.raises(DataError, match=r"another configuration \(run\.seed: 0 -> 1\)"):
        find_run_state(tmp_path, engine, {"run": {"seed": 1, "batch_size": 4}})
    free = {
        "run": {"seed": 0, "batch_size": 4, "log_every": 3},
        "engine": {"backend": "zero3"},
        "output_dir": "x",
    }
    found = find_run_state(tmp_path, engine, free)
    assert found is not None
    assert found.step == 2
    assert find_run_state(tmp_path / "none", engine, free) is None
    with pytest.raises(DataError, match=r"run\.seedling"):
        check_same_configuration(tmp_path, {"run": {}}, {"run": {"seedling": 1}})


def test_another_model_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path)
    planner = make_planner(learned_positions=True)
    engine = make_engine(planner, Job("single"))
    before = {name: value.clone() for name, value in engine.gather_weights().items()}
    with pytest.raises(DataError, match="names or shapes of its weights differ"):
        resume_run_state(tmp_path, engine, provenance(Job("single")).configuration)
    assert all(torch.equal(before[name], value) for name, value in engine.gather_weights().items())


@pytest.mark.parametrize("file", ["moments-00000.safetensors", "model/model.safetensors", "provenance.json"])
def test_damaged_checkpoint_is_refused(file: str, tmp_path: Path) -> None:
    checkpoint = _saved(tmp_path)
    content = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(content[: len(content) // 2])
    engine = make_engine(make_planner(), Job("single"))
    with pytest.raises(DataError, match=r"damaged|cannot read"):
        resume_run_state(tmp_path, engine, provenance(Job("single")).configuration)


@pytest.mark.parametrize("place", ["moments", "model", "card", "rename"])
def test_full_disk_leaves_the_last_good_checkpoint(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = _saved(tmp_path)
    planner = make_planner()
    engine = make_engine(planner, Job("single"))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target: dict[str, tuple[Any, str]] = {
        "moments": (state_files, "save_file"),
        "model": (planner.model, "save_pretrained"),
        "card": (Path, "write_text"),
        "rename": (atomic.os, "replace"),
    }
    monkeypatch.setattr(*target[place], full)
    with pytest.raises(DataError, match=rf"No space left on device.*last good checkpoint is {good}"):
        save_run_state(tmp_path, 3, engine, planner, provenance(Job("single")))
    assert list(tmp_path.iterdir()) == [good]
    monkeypatch.undo()
    assert save_run_state(tmp_path, 3, engine, planner, provenance(Job("single"))).name == "0000003"
    assert [path.name for path in tmp_path.iterdir()] == ["0000003"]


def test_file_that_the_system_cuts_off_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """The real thing: the kernel refuses to let a file grow beyond 100 kB."""
    good = _saved(tmp_path)
    planner = make_planner()
    engine = make_engine(planner, Job("single"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError, match="last good checkpoint"):
            save_run_state(tmp_path, 3, engine, planner, provenance(Job("single")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [good]


def test_kill_while_saving_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every flush of the half-written checkpoint; what it leaves does not disturb the next save."""
    good = _saved(tmp_path)
    planner = make_planner()
    engine = make_engine(planner, Job("single"))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "flush", killed)
    monkeypatch.setattr(run_state.shutil, "rmtree", lambda *_, **__: None)  # nobody tidies up after SIGKILL
    with pytest.raises(KeyboardInterrupt):
        save_run_state(tmp_path, 3, engine, planner, provenance(Job("single")))
    monkeypatch.undo()
    assert run_states(tmp_path) == [good]
    (left,) = tmp_path.glob(".0000003.*.part")
    left.rename(
        tmp_path / left.name.replace(f".{os.getpid()}.", f".{2**22 + 1}.")
    )  # of a process that is dead
    assert save_run_state(tmp_path, 3, engine, planner, provenance(Job("single"))).name == "0000003"
    assert [path.name for path in tmp_path.iterdir()] == ["0000003"]


def test_moments_are_cut_into_files(tmp_path: Path) -> None:
    shapes = {"a": (2, 3), "b": (4,), "c": (1,)}
    moments = {n: {"exp_avg": torch.randn(s), "step": torch.tensor(3.0)} for n, s in shapes.items()}
    assert state_files.write_moments(tmp_path, shapes, moments.__getitem__, True, chunk_bytes=80) is None
    assert len(list(tmp_path.iterdir())) == 2  # 8 * 6 + 8 * 4 bytes are 80: c is too much
    taken: dict[str, dict[str, torch.Tensor]] = {}
    assert state_files.read_moments(tmp_path, shapes, taken.__setitem__) is None
    assert {n: {k: v.tolist() for k, v in m.items()} for n, m in taken.items()} == {
        n: {k: v.tolist() for k, v in m.items()} for n, m in moments.items()
    }
    error = state_files.read_moments(tmp_path, shapes | {"b": (5,)}, taken.__setitem__)
    assert "shape" in str(error)
    error = state_files.read_moments(tmp_path, {"a": (2, 3)}, taken.__setitem__)
    assert "its parameters differ, such as ['b', 'c']" in str(error)


def test_provenance_without_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        run_state.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError())
    )
    assert replace(provenance(Job("single")), code=run_state.code_record()).code["git_commit"] is None
