"""A process that prepares batches for training dies or stops."""

import multiprocessing
import os
import signal
import time

import pytest

from drivefine_agent.errors import WorkerError
from drivefine_agent.training.loader import Part, StepBatches, loader_errors
from drivefine_agent.worker_processes import LIMIT_VARIABLE


class Deadly(StepBatches):
    """Sends its own process a signal at the third step."""

    def __getitem__(self, step: int) -> list[Part]:
        if step == 3:
            os.kill(os.getpid(), signal.SIGSTOP if self.purpose == "stop" else signal.SIGKILL)
        return []


@pytest.mark.parametrize("purpose", ["kill", "stop"])
def test_a_lost_loader_process_is_told(purpose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "2")
    batches = Deadly((), (), 1, 0, purpose)

    def train() -> None:
        with loader_errors():
            for _ in batches.steps(0, 20, num_workers=1):
                time.sleep(0.01)

    with pytest.raises(WorkerError, match=r"got a lost one in training \(DataLoader .*last checkpoint"):
        train()
    deadline = time.monotonic() + 10.0
    while multiprocessing.active_children():
        assert time.monotonic() < deadline
        time.sleep(0.05)
