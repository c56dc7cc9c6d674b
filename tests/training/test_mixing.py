"""The order of examples: every one visited, ratios kept, nothing decided by anything but seed and step."""

import numpy as np

from drivefine_agent.training.mixing import Mixture, mixed_batch
from drivefine_agent.training.phase import batch_order


def test_one_source_is_visited_in_the_order_of_batch_order() -> None:
    mixture = Mixture((10,), (3.0,))
    for step in range(9):
        sources, positions = mixed_batch(mixture, 4, 7, "order", step)
        assert (sources == 0).all()
        np.testing.assert_array_equal(positions, batch_order(10, 4, 7, "order", step))


def test_ratios_decide_how_often_each_source_is_visited() -> None:
    """ReCogDrive's 2 : 1, 60 trajectories and 50 lines of questions: 60 and 30 visits an epoch."""
    mixture = Mixture((60, 50), (2.0, 1.0))
    assert mixture.visits == (60, 30)
    assert mixture.num_epoch_steps(9) == 10
    seen: list[tuple[int, int]] = []
    for step in range(30):  # three epochs
        seen += zip(*(part.tolist() for part in mixed_batch(mixture, 9, 0, "order", step)), strict=True)
    first_epoch = seen[:90]
    assert sorted(i for source, i in first_epoch if source == 0) == list(range(60))
    questions = [i for source, i in seen if source == 1]
    assert len(questions) == 90
    # 50 of them before any comes again: passes go on across epochs.
    assert sorted(questions[:50]) == list(range(50))
    assert len(set(questions[50:])) == 40
    # Mixed within an epoch: each third of it has some of both.
    thirds = [sum(source for source, _ in first_epoch[i : i + 30]) for i in (0, 30, 60)]
    assert min(thirds) >= 3


def test_small_source_is_repeated_and_orders_differ_by_seed_epoch_and_source() -> None:
    mixture = Mixture((8, 3), (1.0, 1.0))
    assert mixture.visits == (8, 8)

    def epoch(seed: int, number: int) -> list[tuple[int, ...]]:
        return [
            tuple(part.tolist())
            for step in range(4)
            for part in mixed_batch(mixture, 4, seed, "order", 4 * number + step)
        ]

    assert epoch(0, 0) == epoch(0, 0)
    assert len({str(epoch(seed, number)) for seed in (0, 1) for number in (0, 1)}) == 4
    counts = np.zeros(3, dtype=int)
    for step in range(12):  # three epochs, 24 visits
        sources, positions = mixed_batch(mixture, 4, 0, "order", step)
        np.add.at(counts, positions[sources == 1], 1)
    assert counts.tolist() == [8, 8, 8]


def test_last_batch_is_filled_from_the_start_of_the_epoch() -> None:
    mixture = Mixture((3, 9), (1.0, 0.7))
    assert mixture.visits == (3, 2)
    batches = [mixed_batch(mixture, 4, 0, "order", step) for step in range(2)]
    order = [pair for s, p in batches for pair in zip(s.tolist(), p.tolist(), strict=True)]
    assert len(order) == 8
    assert order[5:] == order[:3]
