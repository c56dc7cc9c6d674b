"""Files that are either complete or absent."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from drivefine_agent.errors import DataError


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that no reader ever sees half of it; missing folders are made.

    Raises:
      DataError: if the place cannot be written.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
