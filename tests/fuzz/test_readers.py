"""Readers on damaged copies of real files: a value, or one error that names the file, soon."""

import shutil
from random import Random

import pytest
from checked import Bench, new_root
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS, Reader

NUM_DAMAGED = 250
NUM_DAMAGED_SLOW = 60  # metric caches: 60 ms each


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_files_are_named_and_do_no_harm(reader: Reader) -> None:
    """The same damage every time; of a finding, hypothesis shows the smallest damage that makes it."""
    root = new_root()
    try:
        bench = Bench(reader, root)
        count = NUM_DAMAGED_SLOW if reader.name.startswith("metric cache") else NUM_DAMAGED

        @settings(
            max_examples=count,
            derandomize=True,
            deadline=None,  # `Bench` measures
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.randoms(use_true_random=False))
        def is_harmless(random: Random) -> None:
            finding = bench.finding(bench.damaged(random))
            assert finding is None, f"{finding.kind}: {finding.text}"

        is_harmless()
    finally:
        shutil.rmtree(root, ignore_errors=True)
