"""Second-stage samples of NAVSIM 2: `<folder>/synthetic_scene_pickles/<scene_token>.pkl` -> windows.

The files hold four frames up to now with images rendered from where no camera ever was, and the road users'
simulated future as nuPlan objects. They are read without nuplan-devkit (see `nuplan_records`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from drivefine_agent.constants import CAMERA_NAMES, MAP_VERSIONS
from drivefine_agent.data.nuplan_records import SECOND_STAGE_NAMES, global_objects, light_states
from drivefine_agent.data.record_fields import (
    AnnotationKeys,
    annotations_of,
    camera,
    driving_command,
    floats,
    integer,
    text,
    texts,
    traffic_lights,
)
from drivefine_agent.data.safe_pickle import MAX_PICKLE_BYTES, load_pickle_bytes
from drivefine_agent.data.scenes import SceneFilter
from drivefine_agent.data.types import CameraRecord, FloatArray, Frame, SceneWindow, SecondStage
from drivefine_agent.errors import DataError

T = TypeVar("T")

_AGAIN = "fetch or write the file again"

SECOND_STAGE_TOKEN_LENGTH = 17
"""NAVSIM tells a second-stage sample by nothing but the length of its token; first-stage tokens have 16."""

_SCENE_KEYS = ("scene_metadata", "frames", "extended_traffic_light_data", "extended_detections_tracks")
_METADATA_KEYS = (
    "log_name",
    "scene_token",
    "map_name",
    "initial_token",
    "num_history_frames",
    "num_future_frames",
    "corresponding_original_scene",
    "corresponding_original_initial_token",
)
_FRAME_KEYS = (
    "token",
    "timestamp",
    "roadblock_ids",
    "traffic_lights",
    "annotations",
    "ego_status",
    "lidar_path",
    "camera_dict",
)
_EGO_KEYS = ("ego_pose", "ego_velocity", "ego_acceleration", "driving_command", "in_global_frame")
_ANNOTATION_KEYS = AnnotationKeys(
    "annotations", ("boxes", "names", "velocity_3d", "instance_tokens", "track_tokens")
)
_NUM_LISTED = 5


def read_second_stage(path: str | Path) -> SceneWindow:
    """One second-stage sample.

    Poses are as the file has them, velocities and accelerations too: their float32 values, held as float64.
    Cameras that were not rendered are absent from `Frame.cameras`; the `data_path` of the others is relative
    to the second stage's own `sensor_blobs`.

    Args:
      path: `synthetic_scene_pickles/<scene_token>.pkl`.

    Returns:
      A window whose `second_stage` is set. `token` is the sample's key everywhere (`initial_token`).

    Raises:
      DataError: the file is missing, damaged, foreign, or breaks a rule of the format; the message names
        file, frame and key.
      UnsafePickleError: the pickle names something besides numpy, paths and nuPlan's records. Nothing of it
        was executed.

    Source: Scene.load_from_disk in navsim/common/dataclasses.py; navsim-formats, section 3.2.
    """
    path = Path(path)
    return _window(load_pickle_bytes(_content(path), str(path), SECOND_STAGE_NAMES), path)


def load_second_stage(
    folder: str | Path,
    scene_filter: SceneFilter,
    first_stage: Iterable[SceneWindow],
    *,
    tokens: Collection[str] | None = None,
    show_progress: bool = False,
) -> list[SceneWindow]:
    """The second-stage samples of a split, chosen as NAVSIM chooses them.

    NAVSIM keeps a sample if its log passes `log_names` and its `corresponding_original_scene` is the last
    frame of a first-stage sample; if the filter has `synthetic_scene_tokens`, it asks for one of these
    instead of the last frame. It scores those that are in `reactive_synthetic_initial_tokens` as well. What
    is absent it passes over in silence; here it is an error.

    Args:
      folder: `navhard_two_stage/synthetic_scene_pickles`.
      scene_filter: of the split.
      first_stage: the first-stage samples that were loaded with the same filter.
      tokens: return these samples and no others, and insist on every one; e.g. the pairs of some groups of
        the split. None: all that NAVSIM would score.
      show_progress: draw a progress bar over the files.

    Returns:
      Sorted by log and token.

    Raises:
      DataError: the filter has no second stage, the folder or a wanted sample is missing, two files hold the
        same sample, or a file is damaged. One error for all missing tokens, with the reasons that are known.

    Source: filter_synthetic_scenes and SceneLoader in navsim/common/dataloader.py.
    """
    if not scene_filter.include_synthetic_scenes:
        raise DataError(
            "a second stage is loaded by a scene filter with 'include_synthetic_scenes: true', got one "
            "without; set it in the split's scene filter"
        )
    paths = _paths(Path(folder))
    choice = _Choice.of(scene_filter, first_stage, tokens)
    windows: dict[str, SceneWindow] = {}
    origins: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    for path in tqdm(paths, desc="Reading second stage", unit="scene", disable=not show_progress):
        content = _content(path)
        if not choice.may_want(content):
            continue
        window = _window(load_pickle_bytes(content, str(path), SECOND_STAGE_NAMES), path)
        if choice.wanted is not None and window.token not in choice.wanted:
            continue
        if window.token in origins:
            raise DataError(
                f"second-stage tokens must differ between files, got {window.token!r} in both "
                f"{origins[window.token]} and {path}: remove one of the two"
            )
        origins[window.token] = path
        reason = choice.objection(window)
        if reason is None:
            windows[window.token] = window
        else:
            reasons[window.token] = reason
    must_have = choice.wanted or frozenset()
    absent = sorted(must_have - set(windows) if tokens is not None else must_have - set(origins))
    if absent:
        known = "; ".join(f"{token!r}: {reasons[token]}" for token in absent if token in reasons)
        raise DataError(
            f"{len(absent)} of the {len(must_have)} second-stage tokens give no sample: {_listed(absent)}"
            + (f" ({known[:400]})" if known else "")
            + f"; in {folder}. Fetch the missing files, or correct the split's "
            "reactive_synthetic_initial_tokens"
        )
    if not windows:
        raise DataError(
            f"no second-stage sample in {folder} follows one of the first-stage samples: "
            "is this the folder of the split's second stage?"
        )
    return sorted(windows.values(), key=lambda window: (window.log_name, window.token))


@dataclass(frozen=True)
class _Choice:
    """Which samples a split wants."""

    wanted: frozenset[str] | None
    """Tokens to return at most; None: no limit."""
    explicit: frozenset[str] | None
    """The filter's synthetic_scene_tokens."""
    last_frames: frozenset[str]
    log_names: frozenset[str] | None
    pattern: re.Pattern[bytes] | None
    """Finds what could be a token in a file."""

    @classmethod
    def of(
        cls, scene_filter: SceneFilter, first_stage: Iterable[SceneWindow], tokens: Collection[str] | None
    ) -> _Choice:
        listed = tokens if tokens is not None else scene_filter.reactive_synthetic_initial_tokens
        wanted = None if listed is None else frozenset(listed)
        length = SECOND_STAGE_TOKEN_LENGTH
        is_usual = wanted is not None and all(
            re.fullmatch(f"[0-9a-f]{{{length}}}", token) for token in wanted
        )
        explicit = scene_filter.synthetic_scene_tokens
        log_names = scene_filter.log_names
        return cls(
            wanted=wanted,
            explicit=None if explicit is None else frozenset(explicit),
            last_frames=frozenset(window.frames[-1].token for window in first_stage),
            log_names=None if log_names is None else frozenset(log_names),
            pattern=re.compile(rb"(?=([0-9a-f]{%d}))" % length) if is_usual else None,
        )

    def may_want(self, content: bytes) -> bool:
        """Whether a file mentions a wanted token at all; spares reading the others."""
        if self.pattern is None or self.wanted is None:
            return True
        return not self.wanted.isdisjoint(found.decode() for found in self.pattern.findall(content))

    def objection(self, window: SceneWindow) -> str | None:
        """Why NAVSIM would leave the sample out; None if it would not."""
        assert window.second_stage is not None
        if self.log_names is not None and window.log_name not in self.log_names:
            return f"its log {window.log_name!r} is not among log_names"
        if self.explicit is not None:
            return None if window.token in self.explicit else "it is not among synthetic_scene_tokens"
        original = window.second_stage.original_scene
        if original not in self.last_frames:
            return f"its original scene {original!r} is not the last frame of a first-stage sample"
        return None


def _paths(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(
            f"no folder of second-stage samples at {folder}: set synthetic_scenes_path, or "
            f"OPENSCENE_DATA_ROOT to the folder that holds navhard_two_stage/synthetic_scene_pickles"
        )
    paths = sorted(folder.glob("*.pkl"))
    if not paths:
        raise DataError(f"no second-stage sample (*.pkl) in {folder}: is this synthetic_scene_pickles?")
    return paths


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_PICKLE_BYTES:
            raise DataError(
                f"a pickle may have at most {MAX_PICKLE_BYTES} bytes, {path} has more"
                "; is this a second-stage sample?"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the pickle {path}: {error.strerror or error}") from error


def _window(scene: Any, path: Path) -> SceneWindow:
    where = str(path)
    scene = _dict(scene, _SCENE_KEYS, "a second-stage sample", where)
    metadata = _dict(scene["scene_metadata"], _METADATA_KEYS, "'scene_metadata'", where)
    map_name = text(metadata, "map_name", where)
    if map_name not in MAP_VERSIONS:
        raise DataError(
            f"'map_name' must be one of {sorted(MAP_VERSIONS)}, got {map_name!r} in {where}; {_AGAIN}"
        )
    log_name, scene_token = text(metadata, "log_name", where), text(metadata, "scene_token", where)
    if scene_token != path.stem:
        raise DataError(
            f"'scene_token' must equal the file's name without '.pkl', got {scene_token!r} in {where}: "
            "rename the file"
        )
    records = scene["frames"]
    num_history = integer(metadata["num_history_frames"], "num_history_frames", where)
    if not isinstance(records, list) or num_history < 1 or len(records) < num_history:
        raise DataError(
            f"'frames' must be a list of at least {num_history} frames, got "
            f"{len(records) if isinstance(records, list) else type(records).__name__} in {where}; {_AGAIN}"
        )
    calibrations: dict[bytes, FloatArray] = {}
    frames = [
        _frame(record, f"frame {index} of {where}", calibrations, (log_name, map_name, scene_token))
        for index, record in enumerate(records)
    ]
    _check_order(frames, where)
    token = text(metadata, "initial_token", where)
    if frames[num_history - 1].token != token:
        raise DataError(
            f"'initial_token' must be the token of the current frame, got {token!r} and "
            f"{frames[num_history - 1].token!r} in {where}"
            f"; {_AGAIN}"
        )
    return SceneWindow(
        log_name=log_name,
        map_name=map_name,
        scene_token=scene_token,
        frames=tuple(frames),
        num_history_frames=num_history,
        num_future_frames=len(frames) - num_history,
        log_path=path,
        second_stage=SecondStage(
            scene_token=scene_token,
            original_scene=text(metadata, "corresponding_original_scene", where),
            original_token=text(metadata, "corresponding_original_initial_token", where),
            future_objects=tuple(
                _of_nuplan(global_objects, item, f"extended_detections_tracks[{index}] of {where}")
                for index, item in enumerate(_list_or_none(scene, "extended_detections_tracks", where))
            ),
            future_lights=tuple(
                _of_nuplan(light_states, item, f"extended_traffic_light_data[{index}] of {where}")
                for index, item in enumerate(_list_or_none(scene, "extended_traffic_light_data", where))
            ),
        ),
    )


def _of_nuplan(read: Callable[[Any, str], T], item: Any, where: str) -> T:
    try:
        return read(item, where)
    except DataError as error:
        raise DataError(f"{error}; {_AGAIN}") from error


def _frame(
    record: Any, where: str, calibrations: dict[bytes, FloatArray], names: tuple[str, str, str]
) -> Frame:
    record = _dict(record, _FRAME_KEYS, "a second-stage frame", where)
    ego = _dict(record["ego_status"], _EGO_KEYS, "'ego_status'", where)
    if ego["in_global_frame"] is not True:
        raise DataError(
            f"the poses of a second-stage sample must be global, they are not in {where}; {_AGAIN}"
        )
    log_name, map_name, scene_token = names
    lidar_path = record["lidar_path"]
    return Frame(
        token=text(record, "token", where),
        timestamp_us=integer(record["timestamp"], "timestamp", where),
        ego_pose=floats(ego, "ego_pose", (3,), where),
        # NAVSIM computes with whatever precision the file has; every float32 is exact as float64.
        ego_velocity=floats(ego, "ego_velocity", (2,), where),
        ego_acceleration=floats(ego, "ego_acceleration", (2,), where),
        driving_command=driving_command(ego, where),
        roadblock_ids=texts(record["roadblock_ids"], "roadblock_ids", where),
        traffic_lights=traffic_lights(record, where),
        annotations=annotations_of(record["annotations"], _ANNOTATION_KEYS, where),
        cameras=_cameras(record["camera_dict"], where, calibrations),
        lidar_path=None if lidar_path is None else str(lidar_path),
        log_name=log_name,
        map_name=map_name,
        scene_token=scene_token,
    )


def _cameras(record: Any, where: str, calibrations: dict[bytes, FloatArray]) -> dict[str, CameraRecord]:
    """The rendered cameras: those whose entry is not empty."""
    cameras = _dict(record, (), "'camera_dict'", where)
    by_name = {str(name).upper(): value for name, value in cameras.items()}
    missing = [name for name in CAMERA_NAMES if name not in by_name]
    if missing:
        raise DataError(
            f"'camera_dict' must name all eight cameras (not rendered: an empty dict), {missing} are "
            f"missing in {where}"
            f"; {_AGAIN}"
        )
    return {
        name: camera(by_name[name], f"camera {name} of {where}", calibrations)
        for name in CAMERA_NAMES
        if not isinstance(by_name[name], dict) or by_name[name]
    }


def _dict(value: Any, keys: Sequence[str], what: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{what} must be a dict, got {type(value).__name__} in {where}; {_AGAIN}")
    missing = [key for key in keys if key not in value]
    if missing:
        raise DataError(f"{what} needs the keys {missing}, which are missing in {where}; {_AGAIN}")
    return value


def _list_or_none(scene: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = scene[key]
    if value is not None and not isinstance(value, list):
        raise DataError(f"{key!r} must be a list or None, got {type(value).__name__} in {where}; {_AGAIN}")
    return value or []


def _check_order(frames: Sequence[Frame], where: str) -> None:
    tokens = [frame.token for frame in frames]
    if len(set(tokens)) != len(tokens):
        raise DataError(f"frame tokens must differ, got {tokens} in {where}; {_AGAIN}")
    stamps = np.array([frame.timestamp_us for frame in frames])
    if (np.diff(stamps) <= 0).any():
        raise DataError(f"time stamps must increase strictly, got {stamps.tolist()} in {where}; {_AGAIN}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NUM_LISTED])
    return shown + (f" and {len(names) - _NUM_LISTED} more" if len(names) > _NUM_LISTED else "")
