"""Where a run's numbers go: a JSON-lines file, TensorBoard where it is installed, the log for a few."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drivefine_agent.data.atomic import write_bytes, write_error

_logger = logging.getLogger(__name__)


class MetricLog:
    """Appends scalars to `metrics.jsonl` and `tensorboard/` in a run's folder.

    A run that goes on after a stop repeats the entries since its last checkpoint, with equal numbers.
    """

    def __init__(self, folder: Path) -> None:
        """Removes half a line at the end, which a full disk or a killed process has left.

        Args:
          folder: of the run.

        Raises:
          DataError: `metrics.jsonl` cannot be written.
        """
        self._path = folder / "metrics.jsonl"
        try:
            if self._path.is_file() and not (content := self._path.read_bytes()).endswith(b"\n"):
                write_bytes(self._path, content[: content.rfind(b"\n") + 1])
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise write_error(self._path, error) from error
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is None:
            _logger.warning("TensorBoard is not installed (pip install tensorboard): metrics.jsonl only")
        else:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"))

    def add(self, group: str, step: int, scalars: Mapping[str, float], is_shown: bool = False) -> None:
        """Adds scalars `group/name` of one step; shown ones also go to the log.

        Raises:
          DataError: they cannot be written.
        """
        try:
            self._file.write(json.dumps({"group": group, "step": step, **scalars}) + "\n")
            self._file.flush()
        except OSError as error:
            raise write_error(self._path, error) from error
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
        if is_shown:
            _logger.info(
                "%s, step %d: %s", group, step, ", ".join(f"{n} {v:.3f}" for n, v in scalars.items())
            )

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()
