"""The numbers of a run, as a killed process or a full disk leaves them."""

import importlib.util
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivefine_agent.errors import DiskFullError
from drivefine_agent.evaluation.report_runs import read_metrics
from drivefine_agent.training.metrics import MetricLog

FIRST = '{"group": "sft", "step": 1, "loss": 0.5}\n'


@pytest.mark.parametrize("half", ["", '{"group": "sft", "st', FIRST[:-1]])
def test_half_a_line_at_the_end_is_removed(half: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(FIRST + half)
    log = MetricLog(tmp_path)
    log.add("sft", 2, {"loss": 0.25})
    log.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 0.5), (2, 0.25)]


def test_a_file_of_half_a_line_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{")
    log = MetricLog(tmp_path)
    log.add("sft", 1, {"loss": 0.5})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == FIRST


@pytest.fixture
def small_files() -> Iterator[None]:
    """This process may write files of 4,000 bytes at most."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_named_and_the_next_start_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # TensorBoard's thread would die too
    log = MetricLog(tmp_path)

    def add_many() -> None:
        for step in range(1000):
            log.add("sft", step, {"loss": 0.5})

    with pytest.raises(DiskFullError, match=r"metrics\.jsonl"):
        add_many()
    content = (tmp_path / "metrics.jsonl").read_bytes()
    assert len(content) == 4000
    assert not content.endswith(b"\n")
    MetricLog(tmp_path).close()
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 50
