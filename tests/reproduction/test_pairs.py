"""Figure 6: which pairs are chosen, by hand; and that they are drawn from real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import future_poses
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.dataset import DatasetKeys, load_split_scenes
from drivefine_agent.navsim_inputs import FRONT_CAMERA
from drivefine_agent.reproduction import pairs
from drivefine_agent.reproduction.pairs import Pair, draw_pairs, most_changed
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.explain import Reason, explain_v1


def results(**scores: float) -> pd.DataFrame:
    return pd.DataFrame({"token": list(scores), "valid": True, "score": list(scores.values())})


def test_the_largest_gains_come_first_then_the_largest_losses() -> None:
    before = results(a=0.5, b=0.5, c=0.5, d=0.5, e=0.5, f=0.5)
    after = results(f=0.6, e=0.9, d=0.1, c=0.5, b=0.9, a=0.4)
    assert most_changed(before, after, 2) == ["b", "e", "d", "a"]
    failed = after.assign(valid=[True, False, True, True, True, True])  # e
    assert most_changed(before, failed, 3) == ["b", "f", "d", "a"]
    with pytest.raises(DataError, match="refinement changed, got none"):
        most_changed(before, before, 2)


def test_pairs_are_drawn_with_their_reasons(navsim_mini: Path, tmp_path: Path) -> None:
    keys = DatasetKeys(train_test_split="synth_one_stage", dataset_root=str(navsim_mini), max_scenes=1)
    scenes = load_split_scenes(keys)
    scenes = replace(scenes, sensor_path=tmp_path)
    (window,) = scenes.windows
    camera = window.current.cameras[FRONT_CAMERA]
    image = tmp_path / camera.data_path
    image.parent.mkdir(parents=True)
    Image.fromarray(np.full((1080, 1920, 3), 90, dtype=np.uint8)).save(image)
    assert scenes.maps_root is not None
    scene = build_scoring_scene(window, load_map(scenes.maps_root, window.map_name))
    human = future_poses(window, 8)
    sideways = human + np.array([0.0, 60.0, 0.0])  # off the road within half a second
    pair = Pair(window, scene, sideways, human)
    before, after = pair.told()
    assert before.startswith("before: 0.0, ")
    assert after.startswith("after: ")
    assert float(after.split()[1].rstrip(",")) > 50.0
    draw_pairs([pair], scenes, tmp_path / "pairs.png")
    drawn = np.asarray(Image.open(tmp_path / "pairs.png").convert("RGB")).astype(int)
    red, green = (np.abs(drawn - colour).sum(axis=2) < 60 for colour in ([209, 52, 31], [10, 148, 98]))
    assert red.sum() > 20  # the draft's last box
    assert green.sum() > 20


def test_a_rule_without_weight_is_no_reason(navsim_mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Driving direction costs nothing in NAVSIM 1.1: the next reason is told."""
    direction = Reason("driving_direction_compliance", 0.0, "off the route's lanes", 7)
    scenes = load_split_scenes(DatasetKeys(train_test_split="synth_one_stage", dataset_root=str(navsim_mini)))
    window = scenes.windows[0]
    assert scenes.maps_root is not None
    scene = build_scoring_scene(window, load_map(scenes.maps_root, window.map_name))
    human = future_poses(window, 8)
    found = explain_v1(scene, human)
    for others, told in (((Reason("comfort", 0.0, "jerk"),), "jerk"), ((), "nothing lost")):
        with_direction = replace(found, reasons=(direction, *others))
        monkeypatch.setattr(pairs, "explain_v1", lambda *_, found=with_direction: found)
        assert Pair(window, scene, human, human).told()[0].endswith(f", {told}")
