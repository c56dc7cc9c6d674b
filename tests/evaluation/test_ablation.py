"""The ablation's table and curves, on numbers worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.ablation import (
    COLUMNS,
    Row,
    ablation_table,
    learning_curves,
    read_curve,
    seed_difference,
)


def table(scores: list[float], valid: list[bool] | None = None, order: int = 1) -> pd.DataFrame:
    """Results of scenes t0, t1, ... with every sub-score equal to the score."""
    frame = pd.DataFrame(
        {"token": [f"t{i}" for i in range(len(scores))], "valid": valid or [True] * len(scores)}
    )
    for column in COLUMNS:
        frame[column] = scores
    return frame.iloc[::order].reset_index(drop=True)


def test_the_gain_is_the_mean_over_scenes_of_the_mean_over_seeds() -> None:
    base = [table([0.2, 0.4]), table([0.4, 0.4], order=-1)]
    row = [table([0.5, 0.4]), table([0.5, 0.6])]
    # t0: (0.5 + 0.5) / 2 - (0.2 + 0.4) / 2 = 0.2; t1: 0.5 - 0.4 = 0.1, whatever the order of the rows.
    interval = seed_difference(row, base)
    assert interval.mean == pytest.approx(0.15)
    # A resample holds one scene twice or both: its mean is 0.1, 0.15 or 0.2.
    assert (interval.low, interval.high) == (pytest.approx(0.1), pytest.approx(0.2))
    assert seed_difference(base, row).mean == pytest.approx(-0.15)


def test_a_scene_that_failed_once_leaves_the_comparison_in_pairs() -> None:
    base = [table([0.2, 0.4])]
    row = [table([0.3, float("nan")], valid=[True, False])]
    assert seed_difference(row, base).mean == pytest.approx(0.1)
    assert seed_difference(row, base).num_scenes == 1
    with pytest.raises(DataError, match="no scene is valid"):
        seed_difference([table([0.1], valid=[False])], [table([0.1])])


def test_rows_must_match() -> None:
    with pytest.raises(DataError, match=r"as many seeds.*1 and 2"):
        seed_difference([table([0.1])], [table([0.1])] * 2)
    with pytest.raises(DataError, match="same scenes"):
        seed_difference([table([0.1, 0.2])], [table([0.1])])


def test_the_table_has_the_papers_columns_and_both_comparisons() -> None:
    rows = [
        Row("SFT", [table([0.5] * 3)], [table([0.4] * 3)], is_refined=False),
        Row("+ GRPO", [table([0.6] * 3)], [table([0.6] * 3)], is_refined=False),
        Row("all", [table([0.7] * 3)], [table([0.9] * 3)], is_refined=True),
    ]
    text, data = ablation_table(rows, seeds=[7])
    lines = text.splitlines()
    assert lines[0].startswith("| row | NC | DAC | TTC | C | EP | PDMS | by seed |")
    assert (
        lines[2]
        == "| SFT | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | - | - | -10.0 [-10.0, -10.0] * | - |"
    )
    assert lines[4].endswith(
        "| +40.0 [+40.0, +40.0] * | +30.0 [+30.0, +30.0] * "
        "| +20.0 [+20.0, +20.0] * | +30.0 [+30.0, +30.0] * |"
    )
    assert "Before refinement: SFT, + GRPO; the others after it" in text
    assert "3 held-out scenes, seeds 7" in text
    assert data["rows"][2]["against_above"]["mean"] == pytest.approx(0.3)
    assert data["rows"][0]["refined_against_drafts"]["mean"] == pytest.approx(-0.1)


def test_curves_are_read_once_per_step_and_drawn(tmp_path: Path) -> None:
    entries = [{"step": s, "generated/reward": s / 10} for s in (1, 2, 3, 2, 4)]  # resumed after step 1
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert read_curve(tmp_path, "generated/reward") == [0.1, 0.2, 0.3, 0.4]
    assert read_curve(tmp_path, "refined/reward") == []
    learning_curves({"+ GRPO": [tmp_path]}, tmp_path / "plots" / "curves.png", window=2)
    assert (tmp_path / "plots" / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"no metrics.jsonl"):
        read_curve(tmp_path / "nowhere", "generated/reward")
