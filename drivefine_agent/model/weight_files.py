"""The weight files of a model's folder, and a hash that tells models apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from drivefine_agent.errors import DataError


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, shards in the order of their names."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return [folder / "model.safetensors"]


def weights_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a model folder's weight files.

    Raises:
      DataError: a file is missing.
    """
    digest = hashlib.sha256()
    try:
        for file in weight_files(folder):
            digest.update(file.name.encode())
            with file.open("rb") as content:
                while block := content.read(2**24):
                    digest.update(block)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot read the weights of the model in {folder}: {error}") from error
    return digest.hexdigest()
