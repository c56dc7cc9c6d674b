"""Every value of a log frame and of a second-stage sample in turn becomes one of another type."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivefine_agent.data.logs import read_log
from drivefine_agent.data.nuplan_records import SECOND_STAGE_NAMES, Record
from drivefine_agent.data.safe_pickle import load_pickle_bytes
from drivefine_agent.data.second_stage import _window
from drivefine_agent.errors import DataError

LOG = "2021.05.12.10.00.00_veh-35_00100_00160"
SAMPLE = "02ee236dd4d555d7b"
OTHERS: dict[str, Any] = {
    "none": None,
    "yes": True,
    "a huge number": 10**400,
    "infinity": float("inf"),
    "text": "x",
    "list": [],
    "dict": {},
    "numbers": np.zeros(2),
    "a number": np.array(0.0),
    "texts": np.array(["a", "b"]),
    "objects": np.array([None, {}, "x"]),
    "complex": 1 + 2j,
}


def slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in dicts, records and lists; of a list the first and the last."""
    items: Any = ()
    if isinstance(value, Record):
        value = value.fields
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value:
        items = {0: value[0], len(value) - 1: value[-1]}.items()
    for key, item in list(items):
        yield value, key
        yield from slots(item)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_log(other: Any, navsim_mini: Path, tmp_path: Path) -> None:
    frames = pickle.loads((navsim_mini / "navsim_logs" / "test" / f"{LOG}.pkl").read_bytes())[:2]
    path = tmp_path / f"{LOG}.pkl"
    refusals = []
    for container, key in list(slots(frames[1])):
        before, container[key] = container[key], other
        path.write_bytes(pickle.dumps(frames))
        try:
            read_log(path)
        except DataError as error:
            refusals.append(str(error))
        container[key] = before
    assert len(refusals) > 40
    assert all(str(path) in refusal for refusal in refusals)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_second_stage_sample(other: Any, navsim_mini: Path) -> None:
    path = navsim_mini / "navhard_two_stage" / "synthetic_scene_pickles" / f"{SAMPLE}.pkl"
    sample = load_pickle_bytes(path.read_bytes(), str(path), SECOND_STAGE_NAMES)
    _window(sample, path)
    refusals = []
    for container, key in list(slots(sample)):
        before, container[key] = container[key], other
        try:
            _window(sample, path)
        except DataError as error:
            refusals.append(str(error))
        container[key] = before
    assert len(refusals) > 100
    assert all(str(path) in refusal for refusal in refusals)
