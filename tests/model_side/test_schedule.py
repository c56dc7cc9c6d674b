"""Quotas per denoising step."""

from __future__ import annotations

import pytest

from drivefine_agent.diffusion.schedule import SCHEDULES, unmask_quotas

# Steps, then quotas of: raised cosine, linear, shift 1/3, shift 3, MaskGIT. From LaViDa's own function (the
# last column is the floor rule with at least one token per step).
PUBLISHED = {
    4: ("4 8 9 3", "6 6 6 6", "12 6 4 2", "3 3 6 12", "2 6 7 9"),
    6: ("2 5 5 6 5 1", "4 4 4 4 4 4", "9 6 3 3 2 1", "2 2 2 4 5 9", "1 3 4 4 6 6"),
    8: ("1 3 4 4 5 4 2 1", "3 3 3 3 3 3 3 3", "8 4 4 2 2 2 1 1", "2 1 1 2 3 3 5 7", "1 1 3 3 3 4 5 4"),
    12: (
        "1 1 2 3 2 3 4 2 3 1 1 1",
        "2 2 2 2 2 2 2 2 2 2 2 2",
        "6 3 3 3 2 1 1 1 1 1 1 1",
        "1 1 1 1 1 1 2 2 2 3 4 5",
        "1 1 1 1 1 3 2 2 3 3 3 3",
    ),
    24: (" ".join(["1"] * 24),) * 5,
}
COLUMNS = (("cosine", 1.0), ("linear", 1.0), ("shift", 1 / 3), ("shift", 3.0), ("maskgit", 1.0))


@pytest.mark.parametrize("num_steps", PUBLISHED)
@pytest.mark.parametrize("column", range(5), ids=[f"{name}-{alpha:.2g}" for name, alpha in COLUMNS])
def test_quotas_are_the_published_ones(num_steps: int, column: int) -> None:
    name, alpha = COLUMNS[column]
    expected = tuple(int(q) for q in PUBLISHED[num_steps][column].split())
    assert unmask_quotas(24, num_steps, name, alpha) == expected


@pytest.mark.parametrize("num_steps", range(1, 25))
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("alpha", [0.05, 1 / 3, 1.0, 3.0, 20.0])
def test_every_step_commits_and_all_is_committed(schedule: str, num_steps: int, alpha: float) -> None:
    quotas = unmask_quotas(24, num_steps, schedule, alpha)
    assert len(quotas) == num_steps
    assert sum(quotas) == 24
    assert min(quotas) >= 1


@pytest.mark.parametrize("num_steps", [0, 25, -1])
def test_more_steps_than_tokens_are_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=rf"1\.\.24.*got {num_steps}"):
        unmask_quotas(24, num_steps)


def test_unknown_schedule_and_bad_alpha_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown schedule 'cosin'.*cosine"):
        unmask_quotas(24, 12, "cosin")
    with pytest.raises(ValueError, match="shift_alpha must be positive, got 0"):
        unmask_quotas(24, 12, "shift", 0.0)
