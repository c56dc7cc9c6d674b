"""What the doctor is asked to look at."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class DoctorOptions:
    """Everything that the checks read; None is filled from `environment` where NAVSIM has a variable."""

    python: str = sys.executable
    """The interpreter that runs NAVSIM."""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    dataset_root: str | None = None
    """Folder with navsim_logs, sensor_blobs, maps, splits."""
    splits: tuple[str, ...] = ()
    """Names or YAML paths; empty: those of the data set, and NAVSIM's that have their logs."""
    caches: tuple[Path, ...] = ()
    """Cache folders; empty: what lies in NAVSIM_EXP_ROOT."""
    output: Path | None = None
    """Folder for lists of missing files and for split files of what is usable; None: write nothing."""
    deep: bool = False
    """Open every image and every scene of the caches."""
    model: str = "tiny"
    """Preset: tiny, debug or llada_8b."""
    checkpoint: Path | None = None
    """A model's folder, in place of a preset."""
    num_workers: int = 1
    """Processes that read logs."""
    show_progress: bool = False
