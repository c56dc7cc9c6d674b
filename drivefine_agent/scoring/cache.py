"""The scene cache: a folder with scenes ready to be scored, memory-mapped and without pickles.

    manifest.json     format, version, rules, scenes that could not be prepared
    scenes.pack       all scenes (cache_pack)
    part-00000.pack   only while a cache is being built: some of the scenes

A build writes parts, so that it can be stopped and go on; at its end they are joined. The scenes are then in
the order of logs and time stamps, so the same scenes give the same file, however they came together. What
comes out of a cache is bit for bit what went in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from drivefine_agent.data.atomic import atomic_file
from drivefine_agent.data.json_text import read_json
from drivefine_agent.errors import DataError
from drivefine_agent.scoring.cache_layout import RULES_V1
from drivefine_agent.scoring.cache_pack import VERSION, Pack, PackWriter, outdated_message
from drivefine_agent.scoring.types import ScoringScene

FORMAT = "drivefine-scene-cache"
MANIFEST_NAME = "manifest.json"
PACK_NAME = "scenes.pack"
PART_PATTERN = "part-*.pack"
SCENES_PER_PART = 256


def part_name(number: int) -> str:
    """File name of a part."""
    return f"part-{number:05d}.pack"


def next_part_number(folder: Path) -> int:
    """The first number after those of the parts in a folder."""
    return max((int(path.stem.split("-")[1]) + 1 for path in folder.glob(PART_PATTERN)), default=0)


def packs_of(folder: Path) -> list[Path]:
    """All files with scenes in a folder, older ones first."""
    pack = folder / PACK_NAME
    return [*([pack] if pack.exists() else []), *sorted(folder.glob(PART_PATTERN))]


class SceneCache(Mapping[str, ScoringScene]):
    """Read access to a cache folder by scene token.

    Threads may share one. Objects can be pickled and sent to other processes, which map the file for
    themselves. Scenes of the rules `navsim_v2` are `ScoringSceneV2`.

    Raises:
      DataError: if the folder is no scene cache, or a file of it is missing, damaged, of another version, or
        of other rules than asked for.
    """

    def __init__(self, folder: str | Path, rules: str = RULES_V1) -> None:
        self.folder = Path(folder)
        self.rules = rules
        self._failures: dict[str, str] = read_manifest(self.folder, rules)["failures"]
        self._pack = Pack(self.folder / PACK_NAME)
        if self._pack.rules != rules:
            raise DataError(
                f"file and manifest of a scene cache must agree, but {self._pack.path} has scenes of"
                f" '{self._pack.rules}': run tools/build_scene_cache.py again"
            )

    def __getitem__(self, token: str) -> ScoringScene:
        """The scene of a token.

        Raises:
          KeyError: if the cache does not have it; the message says so, and why if preparing the scene failed.
          DataError: if its bytes are damaged.
        """
        if token not in self._pack:
            reason = self._failures.get(token)
            raise KeyError(
                f"scene '{token}' is not in the scene cache {self.folder}: "
                + (
                    f"it could not be prepared: {reason}"
                    if reason
                    else "build the cache for a split that has it"
                )
            )
        return self._pack.load(token)

    def fingerprint(self, token: str) -> int | None:
        """Of what a scene of the cache was prepared from; None if it was not told.

        Raises:
          KeyError: if the cache does not have the scene.
        """
        return self._pack.fingerprint(token)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tokens)

    def __len__(self) -> int:
        return len(self._pack)

    def __contains__(self, token: object) -> bool:
        return token in self._pack

    def __reduce__(self) -> tuple[type[SceneCache], tuple[Path, str]]:
        return type(self), (self.folder, self.rules)

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens, in the order of logs and time stamps."""
        return self._pack.tokens

    def damaged(self) -> dict[str, str]:
        """Scenes with a wrong checksum, with the reason; reads the whole file, but decodes no scene.

        Raises:
          DataError: if tables that scenes share are damaged.
        """
        return self._pack.damaged()

    @property
    def failures(self) -> Mapping[str, str]:
        """Scenes that could not be prepared, with the reason."""
        return self._failures


def read_manifest(folder: Path, rules: str | None = RULES_V1) -> dict[str, Any]:
    """The manifest of a cache folder with scenes of the given rules; None takes any.

    Raises:
      DataError: if it is missing, damaged, foreign, of another version or of other rules.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        state = "its building was interrupted" if packs_of(folder) else "it holds no scene cache"
        raise DataError(
            f"a scene cache needs the file {path}, which does not exist ({state}): run"
            f" tools/build_scene_cache.py metric_cache_path={folder}"
        )
    try:
        manifest = read_json(path)
    except DataError as error:
        raise DataError(
            f"the manifest of the scene cache is damaged ({error}): {path}; delete it and run"
            " tools/build_scene_cache.py again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(
            f"this is not the manifest of a scene cache: {path}; give the folder of a cache of ours"
        )
    if manifest.get("version") != VERSION:
        raise DataError(outdated_message(f"version {manifest.get('version')}", path))
    if rules not in (manifest.get("rules"), None):
        raise DataError(
            f"the scene cache has rules '{manifest.get('rules')}', but '{rules}' are needed: {path}; build"
            " one for these rules in another folder"
        )
    failures = manifest.get("failures")
    if not isinstance(failures, dict) or not all(isinstance(reason, str) for reason in failures.values()):
        raise DataError(
            f"the manifest of a scene cache must list failures, reasons by token, it does not: {path}; delete"
            " it and run tools/build_scene_cache.py again"
        )
    return manifest


def finish_cache(
    folder: Path, failures: Mapping[str, str], rules: str = RULES_V1, show_progress: bool = False
) -> None:
    """Join the parts of a cache, and list the scenes that failed.

    Where a token occurs twice, the newest part counts. A scene that failed is not in the cache, even where an
    older part has it: that was made from other data, or is damaged.

    Raises:
      DataError: if a file is damaged, foreign or of other rules.
    """
    paths = packs_of(folder)
    packs = [Pack(path) for path in paths]
    for pack in packs:
        if pack.rules != rules:
            raise DataError(
                f"a scene cache of rules '{rules}' must hold such scenes, got '{pack.rules}': {pack.path}; "
                "choose another folder, or build it with force_feature_computation=true"
            )
    held = {token: pack for pack in packs for token in pack.tokens}
    owner = {token: pack for token, pack in held.items() if token not in failures}
    if [path.name for path in paths] != [PACK_NAME] or len(owner) < len(held):
        _join(folder / PACK_NAME, owner, rules, show_progress)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "rules": rules,
        "failures": dict(sorted(failures.items())),  # not in the order in which workers found them
    }
    with atomic_file(folder / MANIFEST_NAME) as file:
        file.write(json.dumps(manifest, indent=1).encode())
    for path in folder.glob(PART_PATTERN):  # only now: until here the cache is not complete without them
        path.unlink()


def _join(path: Path, owner: Mapping[str, Pack], rules: str, show_progress: bool) -> None:
    """Write the scenes of several packs into one, by log, time stamp and token."""
    tokens = sorted(owner, key=lambda token: (*owner[token].log_and_time(token), token))
    num_left = Counter(owner[token].path for token in tokens)
    with PackWriter(path, rules) as writer:
        movers: dict[Path, Any] = {}
        bar = tqdm(tokens, desc="Joining parts", unit="scene", leave=False, disable=not show_progress)
        for token in bar:
            pack = owner[token]
            if pack.path not in movers:
                movers[pack.path] = writer.mover(pack)
            movers[pack.path](token)
            num_left[pack.path] -= 1
            if num_left[pack.path] == 0:
                del movers[pack.path]


class SceneCacheWriter:
    """Builds a cache in one process; scenes that the folder already has stay.

    Use as a context manager: leaving it without an exception finishes the cache.
    """

    def __init__(
        self, folder: str | Path, scenes_per_part: int = SCENES_PER_PART, rules: str = RULES_V1
    ) -> None:
        self.folder = Path(folder)
        self.rules = rules
        self.folder.mkdir(parents=True, exist_ok=True)
        self._scenes_per_part = scenes_per_part
        self._scenes: list[ScoringScene] = []
        self._failures: dict[str, str] = {}

    def __enter__(self) -> SceneCacheWriter:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error_type is None:
            self.close()

    def add(self, scene: ScoringScene) -> None:
        """Take in one scene; every full part is written at once."""
        self._scenes.append(scene)
        if len(self._scenes) >= self._scenes_per_part:
            self._flush()

    def add_failure(self, token: str, reason: str) -> None:
        """Note that a scene could not be prepared."""
        self._failures[token] = reason

    def close(self) -> None:
        """Write the last part and finish the cache."""
        if self._scenes:
            self._flush()
        finish_cache(self.folder, self._failures, self.rules)

    def _flush(self) -> None:
        with PackWriter(self.folder / part_name(next_part_number(self.folder)), self.rules) as writer:
            for scene in self._scenes:
                writer.add(scene)
        self._scenes = []
