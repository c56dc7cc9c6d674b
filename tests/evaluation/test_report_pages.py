"""Reports of real evaluations of the small dataset, and what a browser makes of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from drivefine_agent.baselines.constant_velocity import ConstantVelocity
from drivefine_agent.baselines.human import Human
from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.dataset import DatasetKeys, SplitScenes, load_split_scenes
from drivefine_agent.evaluation.job import EvaluationSettings, run_evaluation
from drivefine_agent.evaluation.job_v2 import run_evaluation_v2
from drivefine_agent.evaluation.outcomes import FINAL, GENERATED
from drivefine_agent.evaluation.report import Report, render_report
from drivefine_agent.evaluation.report_job import build_report
from drivefine_agent.evaluation.report_runs import Run, read_metrics, read_run
from drivefine_agent.evaluation.run import SceneSource
from drivefine_agent.scoring.cache_layout import RULES_V2
from drivefine_agent.scoring.explain import Reason

NUM_SCENES = 12
CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)")


@pytest.fixture(scope="module")
def scenes(navsim_mini: Path) -> SplitScenes:
    keys = DatasetKeys("synth_one_stage", dataset_root=str(navsim_mini), max_scenes=NUM_SCENES)
    return load_split_scenes(keys, environment={})


@pytest.fixture(scope="module")
def folders(scenes: SplitScenes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Output folders of two evaluations, by agent."""
    found = {}
    for planner in (ConstantVelocity(), Human()):
        folder = found[planner.name()] = tmp_path_factory.mktemp(planner.name())
        settings = EvaluationSettings(
            benchmark="navsim_v1",
            sensor_path=scenes.sensor_path,
            output_dir=folder,
            maps_root=scenes.maps_root,
            show_progress=False,
        )
        run_evaluation(planner, scenes.windows, settings, {"name": planner.name()})
    return found


@pytest.fixture(scope="module")
def runs(folders: Mapping[str, Path]) -> dict[str, Run]:
    """Two planners; the first one made to look like one that refines the other's plans."""
    found = {name: read_run(name, folder) for name, folder in folders.items()}
    human = found["human"]
    trajectories = {**found["constant_velocity"].trajectories, GENERATED: human.trajectories[FINAL]}
    found["constant_velocity"] = replace(
        found["constant_velocity"], before=human.results, trajectories=trajectories
    )
    return found


@pytest.fixture(scope="module")
def built(scenes: SplitScenes, runs: Mapping[str, Run]) -> Report:
    return build_report(scenes, runs, SceneSource(None, scenes.maps_root), image_width_px=480)


def test_every_scene_below_full_marks_has_its_reasons(built: Report) -> None:
    assert len(built.scenes) == NUM_SCENES
    for scene in built.scenes:
        for plan in ("final", "generated", "human"):
            row = scene.scores[plan]
            assert row is not None
            names = [name for name in built.names if name != "score"]
            failed = {name for name in names if row[name] < 1.0}
            assert {reason.rule for reason in scene.reasons[plan]} == failed
    assert {plan.id for plan in built.plans} == {"final", "generated", "human"}


def test_two_stages_in_reactive_traffic(navsim_mini: Path, tmp_path: Path) -> None:
    """Every sample of both stages has a reason for each sub-score below 1, extended comfort included."""
    keys = DatasetKeys("synth_two_stage", dataset_root=str(navsim_mini))
    scenes = load_split_scenes(keys, environment={})
    group = scenes.groups[0]
    members = {group.token, group.previous_token, *(token for pair in group.pairs for token in pair)}
    scenes = replace(
        scenes,
        groups=(group,),
        windows=tuple(window for window in scenes.windows if window.token in members),
        second_stage=tuple(window for window in scenes.second_stage if window.token in members),
    )
    settings = EvaluationSettings(
        benchmark="navhard_two_stage",
        sensor_path=scenes.sensor_path,
        synthetic_sensor_path=scenes.synthetic_sensor_path,
        output_dir=tmp_path,
        maps_root=scenes.maps_root,
        show_progress=False,
    )
    planner, windows = ConstantVelocity(), (*scenes.windows, *scenes.second_stage)
    run_evaluation_v2(planner, windows, settings, {"name": planner.name()}, scenes.groups)
    source = SceneSource(None, scenes.maps_root, RULES_V2)
    report = build_report(scenes, {"cv": read_run("cv", tmp_path)}, source, image_width_px=64)
    assert {scene.stage for scene in report.scenes} == {1, 2}
    num_reasons = 0
    for scene in report.scenes:
        row = scene.scores["final"]
        assert row is not None
        failed = {name for name in report.names if name != "score" and row[name] < 1.0}
        assert {reason.rule for reason in scene.reasons["final"] if not reason.is_lifted} == failed
        num_reasons += len(failed)
    assert num_reasons > len(report.scenes)
    missing = sum("noImage" in (scene.data or {}) for scene in report.scenes)
    assert 0 < missing < len(report.scenes)  # the small dataset has few images
    assert f"{missing} of them have no camera image here, first: no image at" in report.rule
    text = render_report(report)
    assert "samples of stage 2, each with the same weight" in text
    assert "which is not on this page" not in text


def test_few_scenes_are_chosen_by_a_rule_the_page_states(
    scenes: SplitScenes, runs: Mapping[str, Run]
) -> None:
    few = build_report(scenes, runs, SceneSource(None, scenes.maps_root), num_scenes=6, image_width_px=64)
    assert len(few.scenes) == 6
    assert f"Of {NUM_SCENES} scenes, 6 scenes, chosen by rule" in few.rule


def test_scores_that_the_scenes_do_not_give_are_refused(scenes: SplitScenes, runs: Mapping[str, Run]) -> None:
    run = runs["human"]
    table = run.results.table.copy()
    table.loc[0, "ego_progress"] -= 0.01
    wrong = replace(run, results=replace(run.results, table=table))
    with pytest.raises(DataError, match=r"scores ego_progress = .* its result row says .*evaluate again"):
        build_report(scenes, {"human": wrong}, SceneSource(None, scenes.maps_root))


def test_a_scene_that_failed_is_shown_with_its_reason(scenes: SplitScenes, runs: Mapping[str, Run]) -> None:
    run = runs["human"]
    table = run.results.table.copy()
    token = table.loc[0, "token"]
    table.loc[0, "valid"] = False
    table.loc[0, table.columns[2:]] = float("nan")
    failed = replace(
        run, results=replace(run.results, table=table), errors={token: "TrajectoryError: too far"}
    )
    report = build_report(scenes, {"human": failed}, SceneSource(None, scenes.maps_root), image_width_px=64)
    entry = next(scene for scene in report.scenes if scene.token == token)
    assert entry.scores["final"] is None
    assert entry.errors["final"] == "TrajectoryError: too far"
    assert "TrajectoryError: too far" in render_report(report)


def test_runs_of_different_rules_are_refused(scenes: SplitScenes, runs: Mapping[str, Run]) -> None:
    other = replace(runs["human"], benchmark="navsim_v2")
    with pytest.raises(DataError, match="scored by the same rules"):
        build_report(scenes, {**runs, "human": other}, SceneSource(None, scenes.maps_root))


def test_a_privileged_run_says_so(tmp_path: Path, folders: Mapping[str, Path]) -> None:
    folder = tmp_path / "oracle"
    shutil.copytree(folders["constant_velocity"], folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert read_run("x", folder).note == "straight on at the present speed"
    (folder / "summary.json").write_text(json.dumps({**summary, "privileged": "picked by the true score"}))
    assert read_run("x", folder).note.startswith("privileged:")
    summary["configuration"]["agent"]["blank_image"] = True
    (folder / "summary.json").write_text(json.dumps({**summary, "privileged": "picked by the true score"}))
    note = read_run("x", folder).note
    assert note.startswith("privileged:")
    assert "grey image" in note


def test_drafts_of_a_privileged_run_are_privileged_too(scenes: SplitScenes, runs: Mapping[str, Run]) -> None:
    """The oracle picks by the refined plans' true scores: the drafts of those plans are picked as well."""
    run = runs["human"]
    drafts = replace(run, before=run.results, note="privileged: picked")
    report = build_report(
        scenes, {"oracle": drafts}, SceneSource(None, scenes.maps_root), num_scenes=1, image_width_px=64
    )
    assert report.before is not None
    assert report.before.note == "privileged: picked"


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be an output folder of tools/evaluate\.py"):
        read_run("x", tmp_path)


def test_training_metrics_are_read_or_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must hold metrics\.jsonl"):
        read_metrics(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"group": "rl", "step": 1, "loss": 2.0}\n')
    assert read_metrics(tmp_path) == [{"group": "rl", "step": 1, "loss": 2.0}]
    path.write_text('{"group": "rl", "step": 1}\n{"step": 2}\n')
    with pytest.raises(DataError, match="line 2 of"):
        read_metrics(tmp_path)


# What happens in the page is written to its title, which the browser prints with the document.
_DRIVER = """
<script>
addEventListener("load", () => requestAnimationFrame(() => requestAnimationFrame(() => {
  const seen = {painted: performance.now(), cards: grid.children.length, errors: window.seenErrors};
  form.elements.rule.value = "zero"; update();
  seen.zero = grid.children.length;
  form.reset();
  form.elements.text.value = scenes[3].token; update();
  seen.searched = [...grid.children].map((card) => card.id);
  form.elements.text.value = ""; form.elements.sort.value = "best"; update();
  seen.best = scoreOf(scenes[Number(grid.children[0].id.slice(5))], "final");
  const worst = [...scenes].sort(SORTS.worst)[0];
  open(worst, card(worst));
  const canvas = card(worst).querySelector("canvas");
  const picture = () => canvas.toDataURL();
  card(worst).playTo(0); const first = picture();
  card(worst).playTo(40); seen.moves = picture() !== first;
  seen.reasons = [...card(worst).querySelectorAll(".reason")].map((node) => node.textContent);
  const last = scenes[499];
  seen.unweighted = [firstTrouble(last, ["final"]), card(last).querySelector(".why").textContent];
  seen.pairs = document.querySelectorAll(".pair").length;
  console.log("SEEN" + JSON.stringify(seen));
})));
</script></body>"""
_ERRORS = "<head><script>window.seenErrors = []; onerror = (m) => { seenErrors.push(m); };</script>"


def opened(page: Path, profile: Path) -> dict:
    """What the driver saw in headless Chromium."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--disable-background-networking", f"--user-data-dir={profile}", "--window-size=1280,900"]
    command += [f"--screenshot={page.with_suffix('.png')}", page.as_uri()]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r"SEEN(\{.*\})\", source", done.stderr)
    assert found, done.stderr[-2000:]
    return {**json.loads(found[1].replace('\\"', '"')), "wall_s": time.monotonic() - started}


@needs_browser
def test_a_browser_opens_500_scenes_fast_and_shows_what_is_asked_for(built: Report, tmp_path: Path) -> None:
    """The scenes of the small dataset, repeated under other tokens."""
    many = tuple(
        replace(built.scenes[i % NUM_SCENES], token=f"{built.scenes[i % NUM_SCENES].token}{i:03d}")
        for i in range(500)
    )
    # Driving direction has no weight in NAVSIM 1.1: a card does not give it as the reason of a loss.
    unweighted = Reason("driving_direction_compliance", 0.0, "off the route's lanes", 7)
    many = (*many[:-1], replace(many[-1], reasons={"final": (unweighted,)}))
    text = render_report(replace(built, scenes=many))
    assert len(text) < 40_000_000
    page = tmp_path / "report.html"
    page.write_text(text.replace("<head>", _ERRORS, 1).replace("</body>", _DRIVER))
    seen = opened(page, tmp_path / "profile")
    for _ in range(2):  # other processes may keep the machine busy
        if seen["painted"] >= 2000.0:
            seen = opened(page, tmp_path / "profile")
    assert seen["errors"] == []
    assert seen["cards"] == 500
    assert seen["painted"] < 2000.0
    scores = [scene.scores["final"]["score"] for scene in many]  # type: ignore[index]
    assert seen["zero"] == scores.count(0.0)
    assert seen["searched"] == ["card-3"]
    assert seen["best"] == pytest.approx(max(scores), abs=1e-4)
    assert seen["moves"]
    worst = scores.index(min(scores))
    texts = {reason.text.replace(" ", "\u00a0") for reason in many[worst].reasons["final"]}
    assert texts <= {text.replace(" ", "\u00a0") for text in seen["reasons"]}
    assert seen["pairs"] > 0
    assert seen["unweighted"] == [None, ""]
