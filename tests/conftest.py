"""Fixtures that more than one part of the test suite needs."""

from __future__ import annotations

import lzma
import shutil
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def navsim_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of the small dataset in NAVSIM's formats (an OPENSCENE_DATA_ROOT), unpacked. Read only."""
    root = tmp_path_factory.mktemp("navsim_mini")
    packed = DATA / "navsim_mini"
    for source in sorted(path for path in packed.rglob("*") if path.is_file()):
        target = root / source.relative_to(packed)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".xz":
            target.with_suffix("").write_bytes(lzma.decompress(source.read_bytes()))
        else:
            shutil.copyfile(source, target)
    return root


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Folder of the numbers that the official NAVSIM computed on `navsim_mini`; see tests/data/README.md."""
    return DATA / "golden"
