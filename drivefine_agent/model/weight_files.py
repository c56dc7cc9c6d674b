"""The weight files of a model's folder, and a hash that tells models apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.errors import DataError


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, of the index of a checkpoint in shards.

    Raises:
      DataError: it is missing, damaged, or names a file outside its folder.
    """
    weight_map = read_json_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else [weight_map]
    wrong = [name for name in names if not _is_file_name(name)]
    if not isinstance(weight_map, dict) or wrong:
        raise DataError(
            f"an index must have a weight_map of tensor names to names of files beside it, got "
            f"{wrong[:2]!r:.80}: {index}; fetch it again"
        )
    return weight_map


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name and "\0" not in name


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, shards in the order of their names.

    Raises:
      DataError: there is an index, and it is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(read_weight_map(index).values()))]
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
        raise DataError(
            f"cannot read the weights of the model in {folder}: {error}; fetch it again"
        ) from error
    return digest.hexdigest()
