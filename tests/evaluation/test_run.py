from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scenes_by_hand import scoring_scene, window

from drivefine_agent.agent import DriveFineAgent
from drivefine_agent.baselines.base import BatchPlanner, PlanningCase
from drivefine_agent.baselines.constant_velocity import ConstantVelocity
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError, SceneError
from drivefine_agent.evaluation.outcomes import FINAL, GENERATED, SceneOutcome, failed_scene
from drivefine_agent.evaluation.run import Driver, RefiningPlanner, SceneSource, drive, failures
from drivefine_agent.evaluation.score import ScoringJob, score_scene
from drivefine_agent.scoring.scorer import score_v1
from drivefine_agent.scoring.types import ScoringScene

WINDOWS = [window(token, timestamp_us=10**6 * index) for index, token in enumerate("abcde")]


class Cache(dict):
    """Stands in for a SceneCache."""

    failures: Mapping[str, str] = {}


def source(without: str = "") -> SceneSource:
    scenes = {
        scene.token: scoring_scene(scene.token, scene.current.timestamp_us)
        for scene in WINDOWS
        if scene.token not in without
    }
    return SceneSource(Cache(scenes), maps_root=None)


def no_image(scene: SceneWindow) -> NDArray[np.uint8]:
    raise AssertionError("a planner that does not look must cost no image")


class Planner:
    """Drives straight at 8 m/s and writes down what it was asked."""

    needs_image = False
    needs_scoring_scene = False

    def __init__(self) -> None:
        self.asked: list[str] = []

    def name(self) -> str:
        return "planner"

    def initialize(self) -> None: ...

    def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
        self.asked.append("".join(case.window.token for case in cases))
        poses = np.column_stack([4.0 * np.arange(1, 9), np.zeros(8), np.zeros(8)])
        return np.stack([poses] * len(cases))


def score(plans: Mapping[str, SceneOutcome], scenes: SceneSource) -> list[SceneOutcome]:
    job = ScoringJob("navsim_v1")
    return [score_scene(scenes, job, scene, plans[scene.token]) for scene in WINDOWS if scene.token in plans]


def run(planner: Planner, scenes: SceneSource, **keys: int) -> list[SceneOutcome]:
    """Both passes."""
    plans = drive(Driver(planner, scenes, no_image), WINDOWS, {}, lambda outcomes: None, **keys)
    return score(plans, scenes)


def test_every_scene_has_its_score_in_the_order_of_the_scenes() -> None:
    outcomes = run(planner := Planner(), source(), batch_size=2)
    assert [outcome.token for outcome in outcomes] == list("abcde")
    assert planner.asked == ["ab", "cd", "e"]
    direct = score_v1(scoring_scene("a"), planner.plan([PlanningCase(WINDOWS[0])]))
    assert outcomes[0].stages[FINAL].scores["score"] == direct.score[0]
    assert outcomes[0].stages[FINAL].poses[:3] == (4.0, 0.0, 0.0)


def test_valid_plans_are_taken_over_and_failed_ones_tried_again() -> None:
    class Lame(Planner):
        def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
            if any(case.window.token in "bd" for case in cases):
                raise DataError("cannot plan")
            return super().plan(cases)

    first = drive(Driver(Lame(), source(), no_image), WINDOWS, {}, lambda outcomes: None)
    assert [token for token, plan in first.items() if not plan.is_valid] == ["b", "d"]
    planner, finished = Planner(), []
    second = drive(
        Driver(planner, source(), no_image),
        WINDOWS,
        first,
        lambda outcomes: None,
        on_progress=finished.append,
    )
    assert planner.asked == ["bd"]
    assert all(plan.is_valid for plan in second.values())
    assert second["a"] == first["a"]
    assert finished == [3, 2]


def test_a_plan_has_no_score_yet() -> None:
    plans = drive(Driver(Planner(), source(), no_image), WINDOWS[:1], {}, lambda plans: None)
    assert plans["a"].stages[FINAL].poses[:3] == (4.0, 0.0, 0.0)
    assert plans["a"].stages[FINAL].scores is None


def test_what_could_not_be_planned_keeps_its_reason_when_scored() -> None:
    plan = failed_scene("a", (FINAL, GENERATED), "DataError: no image at x.jpg")
    assert score({"a": plan}, source()) == [plan]


def test_a_plan_stays_when_its_scene_cannot_be_prepared() -> None:
    outcome = run(Planner(), source(without="a"))[0]
    assert outcome.stages[FINAL].poses[:3] == (4.0, 0.0, 0.0)
    assert outcome.stages[FINAL].scores is None
    assert not outcome.is_valid


def test_plans_are_kept_after_each_batch() -> None:
    kept: list[str] = []
    driver = Driver(Planner(), source(), no_image)
    drive(driver, WINDOWS, {}, lambda out: kept.append("".join(o.token for o in out)), batch_size=2)
    assert kept == ["ab", "cd", "e"]


def test_a_scene_without_cache_and_map_fails_with_what_to_do() -> None:
    outcomes = run(Planner(), source(without="c"))
    (row,) = failures(outcomes)
    assert row["token"] == "c"
    assert "not in the scene cache and no map folder is known: set NUPLAN_MAPS_ROOT" in row["error"]


def test_a_scene_that_the_cache_could_not_prepare_keeps_its_reason() -> None:
    scenes = source(without="c")
    scenes._cache.failures = {"c": "no route"}
    with pytest.raises(SceneError, match=r"scene 'c' could not be prepared .*: no route"):
        scenes.get(WINDOWS[2])


def test_a_cache_of_another_dataset_is_refused() -> None:
    scenes = source()
    other = window("a", timestamp_us=77)
    with pytest.raises(DataError, match=r"cached scene 'a' belongs to another log.*77 us"):
        scenes.get(other)


def test_one_scene_that_breaks_a_batch_costs_no_other_its_result() -> None:
    class Picky(Planner):
        def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
            if any(case.window.token == "b" for case in cases):
                raise DataError("cannot plan 'b'")
            return super().plan(cases)

    outcomes = run(Picky(), source(), batch_size=3)
    assert [outcome.is_valid for outcome in outcomes] == [True, False, True, True, True]
    assert failures(outcomes) == [
        {"token": "b", "trajectory_id": FINAL, "error": "DataError: cannot plan 'b'"}
    ]


def test_a_trajectory_with_nan_is_a_failure_not_a_zero() -> None:
    class Broken(Planner):
        def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
            poses = super().plan(cases)
            poses[0, 3, 1] = np.nan
            return poses

    outcomes = run(Broken(), source(), batch_size=5)
    stage = outcomes[0].stages[FINAL]
    assert stage.scores is None
    assert stage.poses is None
    assert "must be finite" in stage.error
    assert outcomes[1].is_valid


def test_a_bug_in_a_planner_stops_the_evaluation() -> None:
    class Buggy(Planner):
        def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Buggy(), source())


def test_too_few_answers_are_refused() -> None:
    class Short(Planner):
        def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
            return super().plan(cases)[:-1]

    with pytest.raises(
        ValueError, match="'planner' must answer 5 cases with as many trajectories 'final', got 4"
    ):
        run(Short(), source())


def test_a_refining_planner_is_scored_before_and_after() -> None:
    class Refining(Planner):
        stage_names = (FINAL, GENERATED)

        def plan_stages(self, cases: Sequence[PlanningCase]) -> Mapping[str, NDArray[np.float64]]:
            final = self.plan(cases)
            return {GENERATED: final * [0.5, 1.0, 1.0], FINAL: final}

    outcome = run(Refining(), source())[0]
    assert outcome.stages[GENERATED].poses[0] == 2.0
    assert outcome.stages[FINAL].poses[0] == 4.0
    assert outcome.stages[GENERATED].scores["ego_progress"] < outcome.stages[FINAL].scores["ego_progress"]


def test_only_planners_that_ask_see_the_image_and_the_privileged_scene() -> None:
    class Looking(Planner):
        needs_image = True
        seen: PlanningCase | None = None

        def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
            self.seen = cases[0]
            return super().plan(cases)

    class Privileged(Looking):
        needs_image = False
        needs_scoring_scene = True

    image = np.zeros((2, 2, 3), dtype=np.uint8)
    looking, privileged = Looking(), Privileged()
    drive(Driver(looking, source(), lambda scene: image), WINDOWS[:1], {}, lambda outcomes: None)
    drive(Driver(privileged, source(), no_image), WINDOWS[:1], {}, lambda outcomes: None)
    assert looking.seen.front_image is image
    assert looking.seen.scoring_scene is None
    assert privileged.seen.front_image is None
    assert isinstance(privileged.seen.scoring_scene, ScoringScene)


def test_a_missing_image_is_a_failed_scene() -> None:
    class Looking(Planner):
        needs_image = True

    def read(scene: SceneWindow) -> NDArray[np.uint8]:
        raise DataError("no image at x.jpg")

    outcomes = score(drive(Driver(Looking(), source(), read), WINDOWS, {}, lambda outcomes: None), source())
    assert {row["error"] for row in failures(outcomes)} == {"DataError: no image at x.jpg"}
    assert len(failures(outcomes)) == 5


def test_baselines_are_planners() -> None:
    outcomes = run(ConstantVelocity(), source())  # type: ignore[arg-type]
    assert outcomes[0].stages[FINAL].poses[0] == 2.5  # 5 m/s for 0.5 s


def test_drivefine_is_a_refining_planner_unless_refinement_is_off() -> None:
    refining, unrefined = DriveFineAgent(), DriveFineAgent(refine=False)
    for agent in (refining, unrefined):
        assert isinstance(agent, BatchPlanner)
        assert isinstance(agent, RefiningPlanner)
    assert Driver(refining, source(), no_image).stage_names == (FINAL, GENERATED)
    assert Driver(unrefined, source(), no_image).stage_names == (FINAL,)


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        run(Planner(), source(), batch_size=0)
