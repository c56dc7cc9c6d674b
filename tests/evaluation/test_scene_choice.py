import pytest

from drivefine_agent.evaluation.scene_choice import (
    BEST,
    BETWEEN,
    GAINED,
    LOST,
    WORST,
    choose_scenes,
    describe_rule,
)

SCORES = {f"s{index:02d}": index / 40 for index in range(40)}  # s00 worst ... s39 best


def by_reason(chosen: list) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for scene in chosen:
        reasons.setdefault(scene.reason, []).append(scene.token)
    return reasons


def test_without_refinement_worst_best_and_even_steps_between() -> None:
    chosen = by_reason(choose_scenes(SCORES))
    assert chosen[WORST] == ["s03", "s02", "s01", "s00"]
    assert chosen[BEST] == ["s39", "s38"]
    # 34 scenes remain for 6 places: ranks (2 k + 1) * 34 // 12 = 2, 8, 14, 19, 25, 31 of s04 ... s37.
    assert sorted(chosen[BETWEEN]) == ["s06", "s12", "s18", "s23", "s29", "s35"]


def test_refinement_shows_its_largest_gains_and_losses() -> None:
    before = {**SCORES, "s20": 0.9, "s21": 0.8, "s22": 0.6, "s30": 0.1, "s31": 0.2, "s32": 0.7}
    chosen = by_reason(choose_scenes(SCORES, before))
    assert sorted(chosen[LOST]) == ["s20", "s21"]
    assert sorted(chosen[GAINED]) == ["s30", "s31"]
    assert sum(len(tokens) for tokens in chosen.values()) == 12


def test_unchanged_scenes_are_neither_gains_nor_losses() -> None:
    chosen = by_reason(choose_scenes(SCORES, dict(SCORES)))
    assert LOST not in chosen
    assert GAINED not in chosen
    assert sum(len(tokens) for tokens in chosen.values()) == 12


def test_the_best_are_looked_for_where_something_was_driven() -> None:
    distance = {token: 0.0 if token in ("s39", "s38") else 30.0 for token in SCORES}
    assert by_reason(choose_scenes(SCORES, distance_m=distance))[BEST] == ["s37", "s36"]


def test_no_scene_twice_and_no_more_than_there_are() -> None:
    few = {"a": 0.5, "b": 0.5, "c": 1.0}
    chosen = choose_scenes(few)
    assert sorted(scene.token for scene in chosen) == ["a", "b", "c"]


def test_ties_go_by_token_whatever_the_order_given() -> None:
    tied = dict.fromkeys("hgfedcba", 1.0)
    assert choose_scenes(tied, count=6) == choose_scenes(dict(sorted(tied.items())), count=6)


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one valid scene"):
        choose_scenes({})


def test_the_rule_in_words_names_the_numbers_of_the_rule() -> None:
    text = describe_rule(has_refinement=True)
    assert "4 lowest" in text
    assert "up to 2 scenes in which refinement lost most" in text
    assert "refinement" not in describe_rule(has_refinement=False)
