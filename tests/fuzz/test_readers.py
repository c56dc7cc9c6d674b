"""Readers on damaged copies of real files: a value, or one error that names the file, soon."""

import shutil
from random import Random

import pytest
from checked import Bench, new_root
from readers import READERS, Reader

NUM_DAMAGED = 150
NUM_DAMAGED_SLOW = 40  # metric caches: 60 ms each


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_files_are_named_and_do_no_harm(reader: Reader) -> None:
    root = new_root()
    try:
        bench = Bench(reader, root)
        count = NUM_DAMAGED_SLOW if reader.name.startswith("metric cache") else NUM_DAMAGED
        for seed in range(count):
            finding = bench.finding(bench.damaged(Random(seed)))
            assert finding is None, f"seed {seed}: {finding.kind}: {finding.text}"
    finally:
        shutil.rmtree(root, ignore_errors=True)
