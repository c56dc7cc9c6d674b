import os
import tracemalloc
from array import array
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scenes_by_hand import scores_row

from drivefine_agent.errors import DataError
from drivefine_agent.evaluation.outcomes import (
    FINAL,
    GENERATED,
    OutcomeLog,
    SceneOutcome,
    StageOutcome,
    configuration_hash,
    failed_scene,
    file_identities,
    predictions_table,
    privileged_of,
    read_predictions,
    stage_table,
    write_predictions_file,
)

POSES = tuple(np.linspace(0.1, 2.4, 24).tolist())


def scored(token: str, score: float = 0.123456789012345678) -> SceneOutcome:
    return SceneOutcome(token, {FINAL: StageOutcome(POSES, scores_row(score=score))})


def test_outcomes_come_back_as_they_were_to_the_last_bit(tmp_path: Path) -> None:
    outcomes = [scored("a"), failed_scene("b", (FINAL, GENERATED), "DataError: no image at x")]
    OutcomeLog(tmp_path, "1234").append(outcomes)
    assert OutcomeLog(tmp_path, "1234").outcomes == {"a": outcomes[0], "b": outcomes[1]}


def test_details_come_back_as_they_were_and_take_little_memory(tmp_path: Path) -> None:
    """Evaluations keep them of all scenes until the end."""
    rng = np.random.default_rng(0)

    def outcome(number: int) -> SceneOutcome:
        details = {"motion": array("d", rng.normal(size=82)), "human_zeros": array("d")}
        return SceneOutcome(str(number), {FINAL: StageOutcome(POSES, {}, details=details)})

    outcomes = {str(number): outcome(number) for number in range(200)}
    OutcomeLog(tmp_path, "x").append(list(outcomes.values()))
    tracemalloc.start()
    log = OutcomeLog(tmp_path, "x")
    bytes_per_scene = tracemalloc.get_traced_memory()[0] / len(outcomes)
    tracemalloc.stop()
    assert log.outcomes == outcomes
    assert bytes_per_scene < 3500


@pytest.mark.parametrize("values", ['["1"]', "[true]", "[1e400]", "3", "null", "[[1.0]]"])
def test_details_that_are_no_numbers_are_refused(tmp_path: Path, values: str) -> None:
    stage = f'{{"poses": null, "scores": null, "error": null, "details": {{"motion": {values}}}}}'
    (tmp_path / "outcomes-x.jsonl").write_text(f'{{"token": "a", "stages": {{"final": {stage}}}}}\n')
    with pytest.raises(DataError, match=r"line 1 of .*outcomes-x\.jsonl"):
        OutcomeLog(tmp_path, "x")


def test_another_configuration_has_another_log(tmp_path: Path) -> None:
    OutcomeLog(tmp_path, "1234").append([scored("a")])
    assert OutcomeLog(tmp_path, "5678").outcomes == {}


def test_a_later_outcome_replaces_an_earlier_one(tmp_path: Path) -> None:
    OutcomeLog(tmp_path, "x").append([failed_scene("a", (FINAL,), "no map")])
    OutcomeLog(tmp_path, "x").append([scored("a")])
    assert OutcomeLog(tmp_path, "x").outcomes == {"a": scored("a")}


@pytest.mark.parametrize("kept_bytes_of_last_line", [1, 40])
def test_a_line_cut_off_by_a_crash_is_dropped_and_the_log_goes_on(
    tmp_path: Path, kept_bytes_of_last_line: int
) -> None:
    log = OutcomeLog(tmp_path, "x")
    log.append([scored("a"), scored("b")])
    first = log.path.read_bytes().index(b"\n") + 1
    os.truncate(log.path, first + kept_bytes_of_last_line)
    again = OutcomeLog(tmp_path, "x")
    assert list(again.outcomes) == ["a"]
    again.append([scored("c")])
    assert list(OutcomeLog(tmp_path, "x").outcomes) == ["a", "c"]


def test_a_log_with_only_half_a_line_is_empty(tmp_path: Path) -> None:
    (tmp_path / "outcomes-x.jsonl").write_text('{"token": "a')
    assert OutcomeLog(tmp_path, "x").outcomes == {}


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    log = OutcomeLog(tmp_path, "x")
    log.append([scored("a"), scored("b")])
    lines = log.path.read_text().splitlines()
    log.path.write_text("\n".join([lines[0], "{}", lines[1]]) + "\n")
    with pytest.raises(DataError, match=r"line 2 of .*outcomes-x\.jsonl"):
        OutcomeLog(tmp_path, "x")


def test_hash_changes_with_any_value_but_not_with_the_order_of_keys() -> None:
    base = configuration_hash({"a": 1, "b": {"c": [1, 2]}})
    assert configuration_hash({"b": {"c": [1, 2]}, "a": 1}) == base
    assert configuration_hash({"a": 1, "b": {"c": [1, 3]}}) != base
    assert len(base) == 16


def test_a_replaced_checkpoint_is_recognised(tmp_path: Path) -> None:
    weights = tmp_path / "run" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"old")
    before = file_identities([tmp_path / "run"])
    os.utime(weights, ns=(0, 0))
    assert file_identities([tmp_path / "run"]) != before
    with pytest.raises(DataError, match=r"must exist, got no .*gone"):
        file_identities([tmp_path / "gone"])


def test_failed_scenes_are_invalid_rows_without_a_trajectory() -> None:
    outcomes = [scored("a", 0.5), failed_scene("b", (FINAL,), "no map")]
    table = stage_table(outcomes, FINAL)
    assert table["valid"].tolist() == [True, False]
    assert np.isnan(table["score"][1])
    assert predictions_table(outcomes)["token"].tolist() == ["a"]


@pytest.mark.parametrize("privileged", ["", "the future"])
def test_predictions_are_written_in_portions(tmp_path: Path, privileged: str) -> None:
    outcomes = [scored(str(number)) for number in range(2500)]
    outcomes[1000] = failed_scene("1000", (FINAL,), "no map")
    write_predictions_file(tmp_path / "predictions.parquet", outcomes, privileged)
    with pq.ParquetFile(tmp_path / "predictions.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [1023, 1024, 452]
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "predictions.parquet").assign(poses=[list(POSES)] * 2499),
        predictions_table(outcomes, privileged),
        check_dtype=False,
    )
    assert privileged_of(tmp_path / "predictions.parquet") == privileged
    assert (read_predictions(tmp_path / "predictions.parquet")[FINAL]["2499"].ravel() == POSES).all()


def test_predictions_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    predictions_table([scored("a")]).to_parquet(path, index=False)
    found = read_predictions(path)
    assert np.array_equal(found[FINAL]["a"], np.reshape(POSES, (8, 3)))


def test_bad_prediction_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"predictions must exist, got .*gone\.parquet"):
        read_predictions(tmp_path / "gone.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"not a readable Parquet file .*text\.parquet; write it again"):
        read_predictions(tmp_path / "text.parquet")
    pd.DataFrame({"token": ["a"], "trajectory_id": [FINAL], "poses": [[1.0]]}).to_parquet(
        tmp_path / "short.parquet"
    )
    with pytest.raises(DataError, match=r"expected 24 numbers as poses, got shape \(1,\) for token 'a'"):
        read_predictions(tmp_path / "short.parquet")
