"""Cutting logs into samples exactly as NAVSIM does, and saying aloud what NAVSIM passes over in silence.

The identity of a sample is the token of its current frame. NAVSIM does not look at time stamps when it cuts
windows, and a token of the filter that never comes to lie on a current frame is simply absent from its
results. Here the windows are the same, but gaps are reported and absent tokens are an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from drivefine_agent.constants import FRAME_INTERVAL_S, NUM_FUTURE_FRAMES, NUM_HISTORY_FRAMES, NUM_POSES
from drivefine_agent.data.logs import read_log
from drivefine_agent.data.types import FloatArray, Frame, SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.geometry.se2 import local_from_global

MAX_FRAME_GAP_S = 0.55
"""Longest step between frames that counts as 2 Hz. NAVSIM 2.2 asserts this bound for its pairs of frames."""

OnTrouble = Literal["warn", "error"]

_NUM_LISTED = 5  # how many tokens or files a message lists


class SceneDataWarning(UserWarning):
    """Scenes were loaded as NAVSIM would load them, but something about them deserves a look."""


@dataclass(frozen=True)
class SceneFilter:
    """Which samples to cut from logs. Fields, defaults and effects are those of NAVSIM's SceneFilter."""

    num_history_frames: int = NUM_HISTORY_FRAMES
    """Past and current frames."""
    num_future_frames: int = NUM_FUTURE_FRAMES
    frame_interval: int | None = None
    """Frames between the starts of two windows; None: disjoint windows."""
    has_route: bool = True
    """Leave out windows whose current frame has no route."""
    max_scenes: int | None = None
    log_names: tuple[str, ...] | None = None
    """Stems of the logs to read; None: all."""
    tokens: tuple[str, ...] | None = None
    """Tokens of the current frames to keep; None: all."""
    include_synthetic_scenes: bool = False
    """NAVSIM 2: also load second-stage scenes. `load_scenes` cuts first-stage windows only."""
    synthetic_scene_tokens: tuple[str, ...] | None = None
    reactive_synthetic_initial_tokens: tuple[str, ...] | None = None
    non_reactive_synthetic_initial_tokens: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_history_frames < 1:
            raise DataError(f"num_history_frames must be at least 1, got {self.num_history_frames}")
        if self.num_future_frames < 0:
            raise DataError(f"num_future_frames must not be negative, got {self.num_future_frames}")
        if self.frame_interval is not None and self.frame_interval < 1:
            raise DataError(f"frame_interval must be at least 1 or None, got {self.frame_interval}")
        if self.max_scenes is not None and self.max_scenes < 1:
            raise DataError(f"max_scenes must be at least 1 or None, got {self.max_scenes}")

    @property
    def num_frames(self) -> int:
        """Frames in one window."""
        return self.num_history_frames + self.num_future_frames

    @property
    def stride(self) -> int:
        """Frames between the starts of two windows."""
        return self.num_frames if self.frame_interval is None else self.frame_interval


def iter_windows(
    frames: Sequence[Frame], scene_filter: SceneFilter, log_path: Path | None = None
) -> Iterator[SceneWindow]:
    """The windows of one log that pass the filter, in order. `max_scenes` and `log_names` are not looked at.

    Source: filter_scenes in navsim/common/dataloader.py.
    """
    tokens = None if scene_filter.tokens is None else frozenset(scene_filter.tokens)
    num_frames = scene_filter.num_frames
    for start in range(0, len(frames) - num_frames + 1, scene_filter.stride):
        current = frames[start + scene_filter.num_history_frames - 1]
        if scene_filter.has_route and not current.roadblock_ids:
            continue
        if tokens is not None and current.token not in tokens:
            continue
        yield SceneWindow(
            log_name=current.log_name,
            map_name=current.map_name,
            scene_token=current.scene_token,
            frames=tuple(frames[start : start + num_frames]),
            num_history_frames=scene_filter.num_history_frames,
            num_future_frames=scene_filter.num_future_frames,
            log_path=log_path,
        )


def load_scenes(
    log_dir: str | Path,
    scene_filter: SceneFilter,
    *,
    on_missing: OnTrouble = "error",
    on_gap: OnTrouble = "warn",
    show_progress: bool = False,
) -> list[SceneWindow]:
    """The samples of a folder of logs, by file name and then by time.

    Args:
      log_dir: folder with `<log_name>.pkl` files, e.g. `navsim_logs/test`.
      scene_filter: which samples to cut.
      on_missing: what to do when a token or log of the filter yields no sample. NAVSIM leaves it out in
        silence.
      on_gap: what to do when a window holds a step longer than `MAX_FRAME_GAP_S`. NAVSIM scores such a
        window as if its frames were 0.5 s apart, so "warn" keeps the window and "error" refuses the whole.
      show_progress: draw a progress bar over the log files.

    Raises:
      DataError: a file is damaged, nothing is found, two samples share a token, or as chosen above. One
        error for all absent tokens, with their number and the first few.
    """
    paths, absent_logs = _log_paths(Path(log_dir), scene_filter)
    windows: dict[str, SceneWindow] = {}
    reasons: dict[str, str] = {}  # token of the filter -> why it is no sample, where that is known
    wanted = frozenset(scene_filter.tokens or ())
    is_complete = False
    for path in tqdm(paths, desc="Reading logs", unit="log", disable=not show_progress):
        frames = read_log(path)
        reasons.update(_reasons(frames, wanted, scene_filter, path))
        for window in iter_windows(frames, scene_filter, path):
            if window.token in windows:
                raise DataError(
                    f"frame tokens must differ between logs, got {window.token!r} in both "
                    f"{windows[window.token].log_path} and {path}: remove one of the two"
                )
            windows[window.token] = window
            is_complete = scene_filter.max_scenes is not None and len(windows) >= scene_filter.max_scenes
            if is_complete:
                break
        if is_complete:
            break

    scenes = list(windows.values())
    if not is_complete:
        _report_missing(scenes, absent_logs, reasons, scene_filter, Path(log_dir), on_missing)
    _report_gaps(scenes, on_gap)
    return scenes


def frame_gaps(frames: Sequence[Frame], max_gap_s: float = MAX_FRAME_GAP_S) -> list[tuple[int, float]]:
    """Steps longer than `max_gap_s`, as (index of the frame before the gap, length of the step [s])."""
    steps_s = np.diff([frame.timestamp_us for frame in frames]) * 1e-6
    return [(int(index), float(steps_s[index])) for index in np.flatnonzero(steps_s > max_gap_s)]


def local_poses(frames: Iterable[Frame], origin: Frame | FloatArray) -> FloatArray:
    """Ego poses of frames as seen from another ego pose.

    Args:
      frames: n frames.
      origin: the frame, or its (3,) global pose, whose rear axle is the origin.

    Returns:
      (n, 3) x, y [m], heading [rad] in the rear-axle frame of `origin`.
    """
    origin_pose = origin.ego_pose if isinstance(origin, Frame) else np.asarray(origin, dtype=np.float64)
    poses = np.array([frame.ego_pose for frame in frames], dtype=np.float64).reshape(-1, 3)
    return local_from_global(poses, origin_pose)


def history_poses(window: SceneWindow) -> FloatArray:
    """(num_history_frames, 3) past and current ego poses in the current ego frame; the last is (0, 0, 0)."""
    return local_poses(window.frames[: window.num_history_frames], window.current)


def future_poses(window: SceneWindow, n: int = NUM_POSES) -> FloatArray:
    """The recorded driver's next poses.

    Args:
      window: a sample.
      n: how many, 0.5 s apart.

    Returns:
      (n, 3) in the current ego frame.

    Raises:
      DataError: if the window holds fewer than `n` future frames.
    """
    if n > window.num_future_frames:
        raise DataError(
            f"{n} future poses ({n * FRAME_INTERVAL_S:g} s) were asked for, the window of token "
            f"{window.token!r} (log {window.log_name!r}) holds {window.num_future_frames}: raise "
            "num_future_frames in the scene filter"
        )
    start = window.num_history_frames
    return local_poses(window.frames[start : start + n], window.current)


def _log_paths(log_dir: Path, scene_filter: SceneFilter) -> tuple[list[Path], list[str]]:
    """The log files to read, sorted by name, and the names of the filter that have no file."""
    if not log_dir.is_dir():
        raise DataError(
            f"no folder of logs at {log_dir}: set navsim_log_path, or OPENSCENE_DATA_ROOT to the folder that "
            f"holds navsim_logs/<data_split>"
        )
    paths = {path.stem: path for path in sorted(log_dir.glob("*.pkl"))}
    if not paths:
        raise DataError(f"no log (*.pkl) in {log_dir}: is this navsim_logs/<data_split>?")
    if scene_filter.log_names is None:
        return list(paths.values()), []
    wanted = frozenset(scene_filter.log_names)
    absent = [name for name in dict.fromkeys(scene_filter.log_names) if name not in paths]
    return [path for name, path in paths.items() if name in wanted], absent


def _reasons(
    frames: Sequence[Frame], wanted: frozenset[str], scene_filter: SceneFilter, path: Path
) -> dict[str, str]:
    """Why each wanted token of this log would not become a sample. Empty for those that do."""
    reasons = {}
    first = scene_filter.num_history_frames - 1
    for index, frame in enumerate(frames):
        if frame.token not in wanted:
            continue
        start = index - first
        if start < 0 or start + scene_filter.num_frames > len(frames):
            reasons[frame.token] = (
                f"it is frame {index} of {len(frames)} in {path.name}, too close to the end for "
                f"{scene_filter.num_history_frames} + {scene_filter.num_future_frames} frames"
            )
        elif start % scene_filter.stride:
            reasons[frame.token] = (
                f"it is frame {index} in {path.name}, off the stride of {scene_filter.stride} frames"
            )
        elif scene_filter.has_route and not frame.roadblock_ids:
            reasons[frame.token] = f"frame {index} in {path.name} has no route (has_route)"
    return reasons


def _report_missing(
    scenes: Sequence[SceneWindow],
    absent_logs: Sequence[str],
    reasons: dict[str, str],
    scene_filter: SceneFilter,
    log_dir: Path,
    on_missing: OnTrouble,
) -> None:
    found = {scene.token for scene in scenes}
    absent_tokens = [token for token in dict.fromkeys(scene_filter.tokens or ()) if token not in found]
    parts = []
    if absent_tokens:
        num_tokens = len(dict.fromkeys(scene_filter.tokens or ()))
        known = "; ".join(f"{t!r}: {reasons[t]}" for t in absent_tokens if t in reasons)
        parts.append(
            f"{len(absent_tokens)} of the {num_tokens} tokens of the filter give no sample: "
            + _listed(absent_tokens)
            + (f" ({known[:400]})" if known else "")
        )
    if absent_logs and (absent_tokens or scene_filter.tokens is None):
        parts.append(f"{len(absent_logs)} logs of the filter have no file: {_listed(absent_logs)}")
    if not scenes and not parts:
        parts.append(f"no window of {scene_filter.num_frames} frames passes the filter")
    if parts:
        _raise_or_warn(
            f"{'; '.join(parts)}; in {log_dir}. Fetch the missing logs, or correct log_names and tokens",
            on_missing,
        )


def _report_gaps(scenes: Sequence[SceneWindow], on_gap: OnTrouble) -> None:
    gaps = [(scene, frame_gaps(scene.frames)) for scene in scenes]
    gaps = [(scene, found) for scene, found in gaps if found]
    if not gaps:
        return
    longest = max(length_s for _, found in gaps for _, length_s in found)
    _raise_or_warn(
        f"{len(gaps)} of {len(scenes)} windows hold a step longer than {MAX_FRAME_GAP_S} s "
        f"(longest {longest:.2f} s), though a sample's frames count as {FRAME_INTERVAL_S} s apart: "
        f"{_listed([f'{scene.token} in {scene.log_name}' for scene, _ in gaps])}. "
        f"NAVSIM keeps such samples; leave their tokens out of the filter to be rid of them",
        on_gap,
    )


def _raise_or_warn(message: str, reaction: OnTrouble) -> None:
    if reaction == "error":
        raise DataError(message)
    warnings.warn(message, SceneDataWarning, stacklevel=4)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NUM_LISTED])
    return shown + (f" and {len(names) - _NUM_LISTED} more" if len(names) > _NUM_LISTED else "")
