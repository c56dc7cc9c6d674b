"""A run's folder belongs to one configuration; a model trained with two would be described by neither."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.errors import DataError

# Keys that may change when a run goes on: they do not touch its numbers.
_FREE_KEYS = (
    "output_dir",
    "experiment_name",
    "tile_cache_path",
    "allow_test_split",
    "i_train_on_test_tokens_of",
    "run.log_every",
    "run.checkpoint_every",
    "run.num_threads",
    "run.deterministic",
    "data.num_workers",
    "data.prefetch",
    "data.cache_tiles",
)


def claim_run_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Makes the folder and keeps the configuration in it, or checks it against the one that is there.

    Raises:
      DataError: the folder holds a run with another configuration; names the keys that differ.
    """
    file = folder / "config.json"
    wanted = json.loads(json.dumps(config))
    if file.is_file():
        found = read_json_object(file)
        first, second = _flat(found), _flat(wanted)
        differing = sorted(
            key
            for key in first.keys() | second.keys()
            if first.get(key) != second.get(key) and key not in _FREE_KEYS
        )
        if differing:
            changes = ", ".join(f"{key}: {first.get(key)!r} -> {second.get(key)!r}" for key in differing[:5])
            raise DataError(
                f"{folder} holds a run with another configuration ({changes}): "
                "choose another experiment_name or output_dir, or delete the folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(file, (json.dumps(wanted, indent=1) + "\n").encode())


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
