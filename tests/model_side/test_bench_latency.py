"""tools/bench_latency.py at a size that takes seconds: its numbers are about the model it says."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from drivefine_agent.errors import DataError
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel

TOOL = Path(__file__).parents[2] / "tools" / "bench_latency.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_latency", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_latency"] = module
    spec.loader.exec_module(module)
    return module


def run(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["bench_latency.py", "--preset", "debug", *arguments])
    try:
        bench.main()
    finally:
        torch.set_num_threads(threads)


def test_one_row_for_each_way_with_equal_tokens(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores.csv"
    scores.write_text("method,steps,score\ncached,1,80\ncached,4,90\nautoregressive,24,89\n")
    overrides = ("--layers", "3", "--width", "32", "--n-refine", "1", "--text-tokens", "40")
    run(
        bench, monkeypatch, *overrides, "--steps", "1", "4", "--repetitions", "1",
        "--scores", str(scores), "--output", str(tmp_path),
    )  # fmt: skip
    with (tmp_path / "latency.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["steps"]) for row in rows] == [
        ("cached", "1"), ("cached", "4"), ("autoregressive", "24"), ("diffusion_head", "5"),
        ("uncached", "1"), ("uncached", "4"),
    ]  # fmt: skip
    assert {row["prompt_tokens"] for row in rows} == {"43"}  # 2 tiles of 1 token, a newline, 40 of text
    for row in rows:
        assert float(row["total_ms"]) > 0.0
        assert float(row["per_step_ms"]) == pytest.approx(float(row["decode_ms"]) / int(row["steps"]))
        weights_mb = 4 * int(row["parameters"]) / 1e6
        assert weights_mb < float(row["peak_mb"]) < 10 * weights_mb
    assert (tmp_path / "latency.png").stat().st_size > 1000
    assert capsys.readouterr().out.count("tokens equal") == 2


def test_a_model_made_on_the_meta_device_has_all_its_values(bench: ModuleType) -> None:
    config = DriveFineConfig.tiny()
    made = bench.random_model(config, torch.device("cpu"), torch.float32)
    usual = DriveFineModel(config)
    assert {n: p.shape for n, p in made.named_parameters()} == {
        n: p.shape for n, p in usual.named_parameters()
    }
    buffers = dict(usual.named_buffers())
    assert len(buffers) > 0
    for name, buffer in made.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert all(bool(torch.isfinite(p).all()) for p in made.parameters())


def test_sizes_of_the_8b_model_by_arithmetic(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(bench, monkeypatch, "--preset", "llada_8b", "--dtype", "bfloat16", "--count-only")
    printed = capsys.readouterr().out
    assert "9,354,798,624 parameters, 18.71 GB" in printed  # model.md 7.6: 8,482,350,624 + 872,448,000
    assert "524,288 bytes a token, 0.957 GB" in printed  # 2 x 32 blocks x 4096 x 2 bytes; 1,826 tokens


def test_scores_without_their_columns_are_refused(bench: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    file.write_text("method,score\ncached,90\n")
    with pytest.raises(DataError, match=r"lacks steps"):
        bench.read_scores(file)
