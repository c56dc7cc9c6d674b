"""Figure 6: plans that refinement changed most, before and after, on the camera's image and from above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import future_poses
from drivefine_agent.data.sensors import read_image
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.birdseye import AREA_COLOURS, BACKGROUND, ROAD_USER_COLOURS, visible_window
from drivefine_agent.evaluation.camera_view import ground_height, ribbon_outlines
from drivefine_agent.evaluation.dataset import SplitScenes
from drivefine_agent.evaluation.paths import (
    GENERATED_STYLE,
    HUMAN_STYLE,
    REFINED_STYLE,
    LineStyle,
    footprint,
    path_line,
)
from drivefine_agent.evaluation.report_rules import WITHOUT_WEIGHT
from drivefine_agent.evaluation.scene_view import birdseye_view
from drivefine_agent.geometry.boxes import box_corners
from drivefine_agent.geometry.indices import BoxIndex
from drivefine_agent.navsim_inputs import FRONT_CAMERA
from drivefine_agent.scoring.explain import explain_v1
from drivefine_agent.scoring.types import ScoringScene

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = NDArray[np.float64]

_HALF_WIDTH_M = 0.25


@dataclass(frozen=True)
class Pair:
    """A scene, and what refinement made of its plan."""

    window: SceneWindow
    scene: ScoringScene
    draft: FloatArray
    """(8, 3) before refinement."""
    refined: FloatArray
    """(8, 3) after it."""

    def told(self) -> list[str]:
        """Scores of both [points of 100] and the first reason for what is lost."""
        lines = []
        for name, poses in (("before", self.draft), ("after", self.refined)):
            explained = explain_v1(self.scene, poses)
            counted = [reason.text for reason in explained.reasons if reason.rule != WITHOUT_WEIGHT]
            why = counted[0] if counted else "nothing lost"
            lines.append(f"{name}: {100 * explained.scores['score']:.1f}, {why}")
        return lines


def most_changed(before: pd.DataFrame, after: pd.DataFrame, count: int) -> list[str]:
    """Tokens of the largest gains, then of the largest losses, `count` each; equal ones by token.

    Args:
      before: per-scene results (`results_csv.read_csv`) of the drafts.
      after: the same of the refined plans.
      count: how many of each; fewer where fewer scenes gained or lost.

    Raises:
      DataError: refinement changed no score.
    """
    scores = [table[table["valid"]].set_index("token")["score"].sort_index() for table in (before, after)]
    change = (scores[1] - scores[0]).dropna()
    gains = change[change > 0].sort_values(ascending=False, kind="stable").head(count)
    losses = change[change < 0].sort_values(kind="stable").head(count)
    if gains.empty and losses.empty:
        raise DataError(
            "pairs need scenes whose score refinement changed, got none in `before` and `after`: "
            "train the refiner longer (refiner.num_epochs)"
        )
    return [*map(str, gains.index), *map(str, losses.index)]


def draw_pairs(pairs: Sequence[Pair], scenes: SplitScenes, file: Path) -> None:
    """Writes a PNG with a row per pair: camera, bird's-eye view, scores with reasons.

    Args:
      pairs: at least one.
      scenes: of the split, for images and maps.
      file: to write.

    Raises:
      DataError: an image or a map is missing.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(pairs),
        2,
        figsize=(9.2, 3.6 * len(pairs)),
        width_ratios=(1.9, 1.0),
        squeeze=False,
        layout="constrained",
    )
    for (left, right), pair in zip(axes, pairs, strict=True):
        _draw_camera(left, pair, scenes)
        _draw_from_above(right, pair, scenes)
        left.set_title("\n".join(pair.told()), fontsize=8, loc="left")
        right.set_title(f"{pair.window.token}\n{pair.window.log_name}", fontsize=7, family="monospace")
    figure.suptitle("red, dashed: before refinement; green: after; blue, dashed: the driver", fontsize=8)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def _plans(pair: Pair) -> tuple[tuple[LineStyle, FloatArray], ...]:
    human = future_poses(pair.window, len(pair.draft))
    return ((HUMAN_STYLE, human), (GENERATED_STYLE, pair.draft), (REFINED_STYLE, pair.refined))


def _draw_camera(axis: Axes, pair: Pair, scenes: SplitScenes) -> None:
    frame = pair.window.current
    camera = frame.cameras[FRONT_CAMERA]
    image = read_image(scenes.sensor_path, camera.data_path)
    axis.imshow(image)
    ground = ground_height(frame.annotations)
    for style, poses in _plans(pair):
        for outline in ribbon_outlines(path_line(poses), _HALF_WIDTH_M, camera, ground, style.dash_m):
            axis.fill(*outline.T, color=style.colour, alpha=0.85, lw=0)
    axis.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
    axis.axis("off")


def _draw_from_above(axis: Axes, pair: Pair, scenes: SplitScenes) -> None:
    """Map and road users of now, the plans, and where each leaves the vehicle after 4 s; ahead is up."""
    frame = pair.window.current
    map_ = None if scenes.maps_root is None else load_map(scenes.maps_root, pair.window.map_name)
    view = birdseye_view(pair.scene, map_)
    order = list(AREA_COLOURS)
    for area in sorted(view.areas, key=lambda area: order.index(area.kind)):
        axis.fill(-area.rings[0][:, 1], area.rings[0][:, 0], color=AREA_COLOURS[area.kind], lw=0)
    if frame.annotations is not None:
        for box, name in zip(frame.annotations.boxes, frame.annotations.names, strict=True):
            pose = box[[BoxIndex.X, BoxIndex.Y, BoxIndex.HEADING]]
            corners = box_corners(pose, box[BoxIndex.LENGTH], box[BoxIndex.WIDTH])
            axis.fill(-corners[:, 1], corners[:, 0], color=ROAD_USER_COLOURS.get(name, "#888888"), lw=0)
    for style, poses in _plans(pair):
        line, corners = path_line(poses), footprint(poses[-1])
        axis.plot(-line[:, 1], line[:, 0], color=style.colour, lw=1.8, ls="--" if style.dash_m else "-")
        axis.fill(-corners[:, 1], corners[:, 0], fill=False, edgecolor=style.colour, lw=1.2)
    x_low, x_high, y_low, y_high = visible_window([poses[:, :2] for _, poses in _plans(pair)], aspect=1.1)
    axis.set(xlim=(-y_high, -y_low), ylim=(x_low, x_high), aspect="equal", facecolor=BACKGROUND)
    axis.set_xticks([])
    axis.set_yticks([])
