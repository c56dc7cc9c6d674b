"""Official metric caches as what a scene cache is built from."""

from __future__ import annotations

import zlib
from pathlib import Path

from drivefine_agent.data.metric_cache import read_metric_cache
from drivefine_agent.data.metric_cache_index import list_metric_caches
from drivefine_agent.errors import DataError
from drivefine_agent.scoring.cache_build import SceneRef
from drivefine_agent.scoring.convert_cache import RULES_OF_VERSION


def metric_cache_refs(
    folder: Path, rules: str, *, with_traffic: bool = False, max_scenes: int | None = None
) -> list[SceneRef]:
    """References to the metric caches of a folder.

    Args:
      folder: what NAVSIM's run_metric_caching.py wrote.
      rules: `navsim_v1` or `navsim_v2`.
      with_traffic: reactive traffic will be prepared; such a scene replaces one without.
      max_scenes: only the first ones.

    Raises:
      DataError: if the folder holds no metric caches, or its first is that of another version; files that
        cannot be read are left to the build, which lists them as failures.
    """
    found = dict(list(list_metric_caches(folder).items())[:max_scenes])
    first = next(iter(found.values()))
    try:
        version = read_metric_cache(first).version
    except DataError:
        version = None
    if version is not None and RULES_OF_VERSION[version] != rules:
        raise DataError(
            f"a metric cache of NAVSIM {version} becomes a scene of '{RULES_OF_VERSION[version]}', got"
            f" '{rules}': {first}; set benchmark={RULES_OF_VERSION[version]}"
        )
    return [
        SceneRef(
            token=token,
            log_path=path,
            map_name="",
            num_history_frames=0,
            num_future_frames=0,
            fingerprint=zlib.crc32(path.read_bytes(), int(with_traffic)),
            is_metric_cache=True,
        )
        for token, path in found.items()
    ]
