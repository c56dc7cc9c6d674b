"""The engine in two processes on the CPU, under torchrun: the losses of one process, and no hanging."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import engine_worker as worker
from engine_worker import Job

BACKENDS = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
LIMIT_S = 150
PARITY = Job("single", steps=10, idle={"3": "refiner", "4": "generator", "5": "generator"})

torch.set_num_threads(1)


def launch(job: Job, out: Path, num_processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Runs the worker under torchrun."""
    job.out = str(out)
    return start([worker.__file__, json.dumps(asdict(job))], num_processes)


def start(script: list[str], num_processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Runs a script under torchrun, with nothing on the PATH that could compile anything."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"]
    command += ["--nproc_per_node", str(num_processes), *script]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
        "CXX": "/none",
        "CC": "/none",
    }
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def result_of(job: Job, out: Path, num_processes: int = 2) -> dict[str, Any]:
    done = launch(job, out, num_processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(out.read_text()))


@pytest.fixture(scope="module")
def one_process() -> dict[str, Any]:
    """The same run in this process, one micro-batch per step, with one expert resting in some steps."""
    return worker.run(Job(**asdict(PARITY) | {"micro_batch_size": 4}))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_equal_those_of_one_process(backend: str, one_process: dict[str, Any], tmp_path: Path) -> None:
    """Two processes with two micro-batches each. While an expert rests, a backend that used an old gradient,
    or left its parameters alone, would part from the others."""
    job = Job(**asdict(PARITY) | {"backend": backend, "micro_batch_size": 1})
    result = result_of(job, tmp_path / "out.json")
    assert len(result["losses"]) == 10
    assert result["losses"] == pytest.approx(one_process["losses"], abs=2e-5)
    assert result["rollouts"] == pytest.approx(one_process["rollouts"], abs=2e-5)
    for norms, expected in zip(result["norms"], one_process["norms"], strict=True):
        assert norms == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert result["weights"] == pytest.approx(one_process["weights"], abs=2e-3)


def test_the_parity_run_can_fail(one_process: dict[str, Any]) -> None:
    """Clipping, resting and rates matter in it: changing any of them changes the losses visibly."""
    base = asdict(PARITY) | {"micro_batch_size": 4}
    for change in ({"idle": {}}, {"max_grad_norm": {"generator": 0.5, "refiner": 1e9}}):
        other = worker.run(Job(**base | change))
        assert other["losses"] != pytest.approx(one_process["losses"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["fsdp2", "zero3"])
def test_sharded_weights_under_checkpointing_and_learned_positions(backend: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 4, "checkpointing": True, "learned_positions": True}
    one = worker.run(Job("single", **settings))
    two = result_of(Job(backend, **settings), tmp_path / "out.json")
    assert two["losses"] == pytest.approx(one["losses"], abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_bfloat16_in_two_processes(backend: str, tmp_path: Path) -> None:
    one = worker.run(Job("single", steps=5, precision="bfloat16"))
    two = result_of(Job(backend, steps=5, precision="bfloat16"), tmp_path / "out.json")
    assert two["losses"] == pytest.approx(one["losses"], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero2", "zero3"])
def test_a_loss_that_is_not_finite_on_one_process_stops_all_and_updates_nothing(
    backend: str, tmp_path: Path
) -> None:
    result = result_of(Job(backend, steps=3, nan_at=1), tmp_path / "out.json")
    assert len(result["errors"]) == 1
    assert "on 1 of 2 processes a loss that is not" in result["errors"][0]
    skipped = worker.run(Job("single", steps=3, nan_at=1))
    assert result["losses"][2] == pytest.approx(skipped["losses"][2], abs=2e-5)


def _two_workers(job: Job) -> list[subprocess.Popen[str]]:
    """Two processes without torchrun's supervisor, which would end the other one itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, worker.__file__, json.dumps(asdict(job))],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "name"), [("ddp", "SIGKILL"), ("zero3", "SIGKILL"), ("fsdp2", "SIGKILL"), ("ddp", "SIGSTOP")]
)
def test_a_process_that_dies_or_hangs_ends_the_run_with_an_error(
    backend: str, name: str, tmp_path: Path
) -> None:
    job = Job(backend, out=str(tmp_path / "out.json"), steps=1000, die_at={name: 2}, timeout_s=8.0)
    processes = _two_workers(job)
    try:
        began = time.monotonic()
        _, errors = processes[0].communicate(timeout=60)
        assert processes[0].returncode not in (0, None)
        assert "ProcessLostError: another process of this run died, or did not answer within" in errors
        assert "start the same command again" in errors
        assert time.monotonic() - began < 45
    finally:
        for process in processes:
            process.kill()
            process.communicate()


LEAVING = """
import torch, torch.distributed as dist
from rl.processes import Processes
processes = Processes.joined("ddp", "cpu", 60.0)
owner = dist.group.WORLD
tensors = [torch.ones(1 << 16) for _ in range(60)]
for tensor in tensors:
    dist.all_reduce(tensor, async_op=True)
del tensor, tensors
processes.leave()
"""


@pytest.mark.slow
def test_leaving_while_exchanges_still_run_does_not_abort(tmp_path: Path) -> None:
    """Without the pause in `leave`, two of three of these end with "terminate called"."""
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    for _ in range(4):
        done = start([str(script)])
        assert done.returncode == 0, done.stderr[-3000:]
