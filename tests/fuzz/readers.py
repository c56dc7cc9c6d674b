"""Readers of files: how a real file is made, small, and how it is read. The fuzz tests use this table."""

from __future__ import annotations

import encodings.cp437  # noqa: F401 - that zipfile imports when it first reads a name
import json
import lzma
import pickle
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from drivefine_agent import provenance
from drivefine_agent.baselines import ego_status_mlp
from drivefine_agent.constants import ANSWER_LENGTH
from drivefine_agent.data import (
    driving_text,
    logs,
    maps,
    metric_cache,
    metric_cache_index,
    recogdrive,
    safe_pickle,
    second_stage,
    sensors,
    splits,
    submission,
)
from drivefine_agent.evaluation import (
    outcomes,
    report_runs,
    results_csv,
    results_csv_v2,
    submission_check,
    trajectory_file,
)
from drivefine_agent.model import foreign_config, scorer_head, tensor_files, text_tokenizer, weight_files
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.reproduction import job, scores
from drivefine_agent.scoring.batch import ScoringRules, score_many
from drivefine_agent.scoring.cache import SceneCache, SceneCacheWriter, finish_cache
from drivefine_agent.scoring.cache_layout import RULES_V1, RULES_V2
from drivefine_agent.scoring.convert_cache import scoring_scene_from_metric_cache
from drivefine_agent.training import checkpoint, rollouts, run_folder
from rl import run_state, state_files
from tools import bench_latency, compare

DATA = Path(__file__).parents[1] / "data"
MINI = DATA / "navsim_mini"
GOLDEN = DATA / "golden"
LOG = "2021.05.12.10.00.00_veh-35_00100_00160"
SECOND_STAGE = "02ee236dd4d555d7b"
TOKENS = ("a" * 16, "b" * 16, "c" * 16)


@dataclass(frozen=True)
class Reader:
    """A reader of files."""

    name: str
    make: Callable[[Path], None]
    """Writes real files into an empty folder."""
    read: Callable[[Path], object]
    """Reads what is in such a folder."""
    damaged: Mapping[str, str]
    """What is damaged: path below the folder, or pattern -> name of a mutator (`mutations`)."""
    writes: bool = False
    """Whether the call also writes, as it should."""


Files = Mapping[str, bytes]
"""Content by path below a folder."""


def copied(source: Path, name: str) -> Callable[[Path], None]:
    """Makes one file, unpacked if the source ends in .xz."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = source.read_bytes()
        (folder / name).write_bytes(lzma.decompress(content) if source.suffix == ".xz" else content)

    return make


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Makes one file."""

    def make(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def as_json(name: str, value: object) -> Callable[[Path], None]:
    """Makes one JSON file."""
    return written(name, json.dumps(value, indent=1) + "\n")


# ------------------------------------------------------------------------------------------- NAVSIM's files


def make_log(folder: Path) -> None:
    packed = lzma.decompress((MINI / "navsim_logs" / "test" / f"{LOG}.pkl.xz").read_bytes())
    frames = safe_pickle.load_pickle_bytes(packed, LOG)[:3]
    (folder / f"{LOG}.pkl").write_bytes(pickle.dumps(frames, protocol=4))


def cache_of(version: str) -> Path:
    return next((GOLDEN / "official_metric_caches" / version).rglob("metric_cache.pkl"))


def make_cache_folder(folder: Path) -> None:
    shutil.copytree(GOLDEN / "official_metric_caches" / "v11", folder, dirs_exist_ok=True)


def make_map(folder: Path) -> None:
    """A real map with the first rows of every layer."""
    packed = MINI / "maps" / "us-ma-boston" / "9.12.1817" / "map.gpkg.xz"
    connection = sqlite3.connect(":memory:")
    connection.deserialize(lzma.decompress(packed.read_bytes()))
    for (table,) in connection.execute("SELECT table_name FROM gpkg_contents").fetchall():
        if table != "meta":
            connection.execute(
                f'DELETE FROM "{table}" WHERE rowid NOT IN (SELECT rowid FROM "{table}" LIMIT 6)'
            )
    connection.commit()
    connection.execute("VACUUM")
    (folder / "map.gpkg").write_bytes(connection.serialize())
    connection.close()


def read_map(folder: Path) -> object:
    map_ = maps.read_map(folder / "map.gpkg", "us-ma-boston")
    return [map_.layer(layer) for layer in maps.Layer] if hasattr(map_, "layer") else map_


def make_images(folder: Path) -> None:
    from PIL import Image

    source = next((MINI / "sensor_blobs").rglob("*.jpg"))
    with Image.open(source) as image:
        small = image.resize((64, 36))
        small.save(folder / "a.jpg")
        small.save(folder / "b.jpg", progressive=True)
        small.save(folder / "c.png")


def read_images(folder: Path) -> object:
    return [sensors.read_image(folder, name) for name in ("a.jpg", "b.jpg", "c.png")]


def make_submission(folder: Path) -> None:
    rng = np.random.default_rng(0)
    team = submission.TeamInfo("team", "authors", "a@b.c", "institution", "country")
    poses = {token: rng.normal(size=(8, 3)).astype(np.float32) for token in TOKENS}
    submission.write_submission(folder / "submission.pkl", submission.Submission(team, (poses,)))


def read_submission(folder: Path) -> object:
    path = folder / "submission.pkl"
    check = submission_check.check_submission(path, submission_check.WantedTokens("split", TOKENS))
    return submission_check.format_check(check), submission.read_submission(path)


def read_split(folder: Path) -> object:
    return splits.load_split("synth_two_stage", [folder / "train_test_split"])


# ------------------------------------------------------------------------------------------- our own files


def make_scenes(version: str, rules: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        cache = metric_cache.read_metric_cache(cache_of(version))
        map_name = cache.map_name
        known = None
        if map_name:
            unpacked = folder / "maps"
            packed = next((MINI / "maps" / map_name).rglob("map.gpkg.xz"))
            unpacked.mkdir()
            (unpacked / "map.gpkg").write_bytes(lzma.decompress(packed.read_bytes()))
            known = maps.read_map(unpacked / "map.gpkg", map_name)
            shutil.rmtree(unpacked)
        with SceneCacheWriter(folder, rules=rules) as writer:
            writer.add(scoring_scene_from_metric_cache(cache, known))

    return make


def read_scenes(rules: str) -> Callable[[Path], object]:
    poses = np.zeros((1, 8, 3))
    poses[0, :, 0] = np.arange(1, 9) * 2.0

    def read(folder: Path) -> object:
        cache = SceneCache(folder, rules)
        cache.damaged()
        scored = score_many(cache, {token: poses for token in cache.tokens}, ScoringRules(rules))
        (folder / "scenes.pack").rename(folder / "part-00000.pack")
        finish_cache(folder, {}, rules)
        return scored

    return read


def make_predictions(folder: Path) -> None:
    plans = [
        outcomes.SceneOutcome(token, {"final": outcomes.StageOutcome(tuple(map(float, range(24))), None)})
        for token in TOKENS
    ]
    outcomes.predictions_table(plans, "sees").to_parquet(folder / "predictions.parquet", index=False)


def read_predictions(folder: Path) -> object:
    path = folder / "predictions.parquet"
    return outcomes.read_predictions(path), outcomes.privileged_of(path), outcomes.plans_of(path, TOKENS)


def read_trajectories(folder: Path) -> object:
    file = trajectory_file.TrajectoryFile(folder / "predictions.parquet")
    return file.tokens(), list(file.portions())


def make_outcomes(folder: Path) -> None:
    log = outcomes.OutcomeLog(folder, "0123")
    stage = outcomes.StageOutcome(tuple(map(float, range(24))), dict.fromkeys(results_csv.METRICS_V1, 0.5))
    log.append([outcomes.SceneOutcome(token, {"final": stage}) for token in TOKENS])


def read_outcomes(folder: Path) -> object:
    log = outcomes.OutcomeLog(folder, "0123")
    return log.outcomes


def make_run(folder: Path) -> None:
    summary = {
        "agent_name": "drivefine",
        "configuration": {"agent": {"name": "drivefine"}},
        "benchmark": "navsim_v1",
        "traffic": "",
        "human_penalty_filter": None,
    }
    as_json(report_runs.SUMMARY_NAME, summary)(folder)
    copied(GOLDEN / "v11_pdms_human_agent.csv", report_runs.RESULTS_NAME)(folder)
    make_predictions(folder)
    failure = {"token": TOKENS[0], "error": "no route"}
    written(report_runs.FAILURES_NAME, json.dumps(failure) + "\n")(folder)


def read_run(folder: Path) -> object:
    return report_runs.read_run("a", folder), compare.read_privileged(folder / report_runs.RESULTS_NAME)


def make_table_scores(folder: Path) -> None:
    table = scores.TableScores({"steps": 3}, dict.fromkeys(TOKENS, "log"), minutes={0: 1.5})
    result = pd.DataFrame({"token": TOKENS, "valid": True, "score": 0.5})
    table.add("row", 0, result, ("score",))
    scores.write_scores(folder / "scores.parquet", table)


def make_rollouts(folder: Path) -> None:
    rows = rollouts.Rollouts(
        np.array(TOKENS),
        np.array(["draft"] * 3),
        np.zeros((3, ANSWER_LENGTH), dtype=np.int64),
        np.full((3, len(rollouts.SUB_SCORES)), 0.5),
    )
    rollouts.write_part(rollouts.part_path(folder, "0"), rows)


def make_questions(folder: Path) -> None:
    turns = [recogdrive.Turn("<image>\nWhere?", driving_text.trajectory_text(np.zeros((8, 3))))]
    records = [recogdrive.question_record(i, f"{t}.jpg", turns * (i + 1), t) for i, t in enumerate(TOKENS)]
    recogdrive.write_records(folder / "questions.jsonl", records)


def read_questions(folder: Path) -> object:
    file = recogdrive.ConversationFile(folder / "questions.jsonl", show_progress=False)
    found = [file[index] for index in range(len(file))]
    return found, [recogdrive.relative_image(image, None, str(folder)) for image in file.images]


MOTION = (
    "t-3: (-3.00, 0.0, 0.0) t-2: (-2.00, 0.0, 0.0) t-1: (-1.00, 0.0, 0.0) t-0: (0.0, 0.0, 0.0) command "
    "[GO STRAIGHT] velocity: (+1.00, 0.0) acceleration: (0.0, 0.0)"
)


def read_driving_text(folder: Path) -> object:
    text = (folder / "answer.txt").read_bytes().decode(errors="replace")
    answer, _, question = text.partition("\n")
    try:
        return driving_text.parse_trajectory(answer), driving_text.parse_motion(question)
    except driving_text.DataError as error:  # the callers add the file
        raise driving_text.DataError(f"{error}: {folder}") from error


CARD = {
    "data": asdict(
        provenance.training_data(
            "sft", "navtrain", TOKENS, 5, {"no image": 2}, {"navtest": "1 log"}, ["navtest"]
        )
    ),
    "parent": {
        "path": "somewhere",
        "training_data": [None, {"stage": "sft", "num_tokens": 3, "test_data": {}}],
    },
}


def read_card(folder: Path) -> object:
    card = provenance.read_model_card(folder)
    if card is None:
        return None
    records = provenance.all_training_data(card)
    return provenance.describe(records), provenance.seen_test_splits(records), run_state.read_card(folder)


# ------------------------------------------------------------------------------------------- weights


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"a.weight": torch.randn(3, 4, generator=generator), "b": torch.ones(2), "c": torch.tensor(1.5)}


def read_tensors(folder: Path) -> object:
    stored = tensor_files.list_tensors(folder)
    return [piece.sum() for tensor in stored for piece in tensor_files.read_pieces(tensor)]


def make_shards(folder: Path) -> None:
    names = list(tensors())
    for index, name in enumerate(names):
        save_file({name: tensors()[name]}, folder / f"model-{index}.safetensors")
    shards = {name: f"model-{index}.safetensors" for index, name in enumerate(names)}
    as_json(tensor_files.INDEX_NAME, {"metadata": {}, "weight_map": shards})(folder)


def read_shards(folder: Path) -> object:
    return read_tensors(folder), weight_files.weights_hash(folder)


def make_bin(folder: Path) -> None:
    torch.save(tensors(), folder / "pytorch_model.bin")


def make_state(folder: Path) -> None:
    """Weights and moments of reinforcement, and a checkpoint of supervised training."""
    save_file(tensors(), folder / "model.safetensors")
    save_file({"b/exp_avg": torch.ones(2), "b/step": torch.tensor(1.0)}, folder / "moments-00000.safetensors")


def read_state(folder: Path) -> object:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors().items()}
    problems = [
        state_files.read_weights(folder, shapes, lambda *_: None),
        state_files.read_moments(folder, {"b": (2,)}, lambda *_: None),
    ]
    for problem in problems:
        if problem is not None:
            raise problem
    return None


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def make_checkpoint(folder: Path) -> None:
    save_file(dict(small_model().state_dict()), folder / "weights.safetensors")
    as_json("state.json", {"step": 3, "average_updates": 2})(folder)


def read_checkpoint(folder: Path) -> object:
    checkpoint.load_weights(folder, small_model())
    return checkpoint.load_state(folder)


def make_mlp(folder: Path) -> None:
    config = ego_status_mlp.EgoStatusMLPConfig(hidden_dim=4)
    ego_status_mlp.save_mlp(ego_status_mlp.build_mlp(4), config, folder)


def make_scorer(folder: Path) -> None:
    config = scorer_head.ScorerHeadConfig(4, ("no_at_fault_collisions",), "0" * 64, slot_width=2, width=4)
    scorer_head.save_scorer(scorer_head.ScorerHead(config), folder)


def make_tokenizer(folder: Path) -> None:
    shutil.copyfile(text_tokenizer.TINY_TOKENIZER_FILE, folder / text_tokenizer.TOKENIZER_FILE_NAME)


def read_tokenizer(folder: Path) -> object:
    tokenizer = text_tokenizer.TextTokenizer.from_file(folder)
    tokenizer.decode(tokenizer.encode("<|startoftext|>Turn left, 3.5 m/s" + 50 * "ab "))
    return tokenizer.as_json()


READERS = (
    Reader("log", make_log, lambda f: logs.read_log(f / f"{LOG}.pkl"), {f"{LOG}.pkl": "pickle"}),
    Reader(
        "second stage",
        copied(
            MINI / "navhard_two_stage" / "synthetic_scene_pickles" / f"{SECOND_STAGE}.pkl.xz",
            f"{SECOND_STAGE}.pkl",
        ),
        lambda f: second_stage.read_second_stage(f / f"{SECOND_STAGE}.pkl"),
        {f"{SECOND_STAGE}.pkl": "pickle"},
    ),
    *(
        Reader(
            f"metric cache {version}",
            copied(cache_of(version), "metric_cache.pkl"),
            lambda f: scoring_scene_from_metric_cache(metric_cache.read_metric_cache(f / "metric_cache.pkl")),
            {"metric_cache.pkl": "xz pickle"},
        )
        for version in ("v11", "v22")
    ),
    Reader(
        "list of metric caches",
        make_cache_folder,
        metric_cache_index.list_metric_caches,
        {"metadata/metric_cache_metadata_node_0.csv": "text"},
    ),
    Reader("map", make_map, read_map, {"map.gpkg": "sqlite"}),
    Reader(
        "index of maps",
        copied(MINI / "maps" / "nuplan-maps-v1.0.json", "nuplan-maps-v1.0.json"),
        lambda f: maps.map_path(f, "us-ma-boston"),
        {"nuplan-maps-v1.0.json": "json"},
    ),
    Reader("images", make_images, read_images, {"a.jpg": "bytes", "b.jpg": "bytes", "c.png": "bytes"}),
    Reader("submission", make_submission, read_submission, {"submission.pkl": "pickle"}),
    Reader(
        "split",
        lambda f: shutil.copytree(MINI / "splits", f, dirs_exist_ok=True) and None,
        read_split,
        {"train_test_split/synth_two_stage.yaml": "text", "train_test_split/scene_filter/*.yaml": "text"},
    ),
    Reader(
        "lists of logs",
        written("logs.yaml", "train_logs:\n- a\n- b\nval_logs:\n- c\ntest_logs: []\n"),
        lambda f: splits.load_log_lists(f / "logs.yaml"),
        {"logs.yaml": "text"},
    ),
    *(
        Reader(
            f"scene cache {rules}",
            make_scenes(version, rules),
            read_scenes(rules),
            {"scenes.pack": "bytes", "manifest.json": "bytes"},
            writes=True,
        )
        for version, rules in (("v11", RULES_V1), ("v22", RULES_V2))
    ),
    Reader("predictions", make_predictions, read_predictions, {"predictions.parquet": "parquet"}),
    Reader("trajectories", make_predictions, read_trajectories, {"predictions.parquet": "parquet"}),
    Reader("outcomes", make_outcomes, read_outcomes, {"outcomes-0123.jsonl": "json"}, writes=True),
    Reader(
        "run",
        make_run,
        read_run,
        {
            report_runs.SUMMARY_NAME: "json",
            report_runs.FAILURES_NAME: "json",
            report_runs.RESULTS_NAME: "text",
        },
    ),
    Reader(
        "metrics of a run",
        written("metrics.jsonl", '{"group": "train", "step": 1, "loss": 0.5}\n' * 2),
        report_runs.read_metrics,
        {"metrics.jsonl": "json"},
    ),
    Reader(
        "result of NAVSIM 1",
        copied(GOLDEN / "v11_pdms_human_agent.csv", "a.csv"),
        lambda f: (results_csv_v2.rules_of_csv(f / "a.csv"), results_csv.read_csv(f / "a.csv")),
        {"a.csv": "text"},
    ),
    Reader(
        "result of one stage",
        copied(GOLDEN / "v22_one_reactive_human_agent.csv", "a.csv"),
        lambda f: results_csv_v2.read_one_stage(f / "a.csv"),
        {"a.csv": "text"},
    ),
    Reader(
        "result of two stages",
        copied(GOLDEN / "v22_two_human.csv", "a.csv"),
        lambda f: results_csv_v2.read_two_stage(f / "a.csv"),
        {"a.csv": "text"},
    ),
    Reader(
        "groups of two stages",
        written(
            "a_groups.csv",
            ",".join(results_csv_v2.GROUP_COLUMNS)
            + "\n"
            + ",".join("True" if c == "valid" else "0.5" for c in results_csv_v2.GROUP_COLUMNS)
            + "\n",
        ),
        lambda f: results_csv_v2.read_groups(f / "a_groups.csv"),
        {"a_groups.csv": "text"},
    ),
    Reader(
        "scores of a table",
        make_table_scores,
        lambda f: scores.read_scores(f / "scores.parquet", {"steps": 3}),
        {"scores.parquet": "parquet"},
    ),
    Reader(
        "latencies",
        written("latency.csv", "method,steps,score\nours,3,78.5\nours,6,79.0\n"),
        lambda f: bench_latency.read_scores(f / "latency.csv"),
        {"latency.csv": "text"},
    ),
    Reader(
        "record of a command",
        as_json(job._DONE_NAME, {"command": ["tools/evaluate.py", "a=1"], "seconds": 3.5}),
        lambda f: job.run_once(f, "tools/evaluate.py", "a=1", log=None),
        {job._DONE_NAME: "json"},
    ),
    Reader("scored rollouts", make_rollouts, rollouts.read_rollouts, {"part-0.parquet": "parquet"}),
    Reader("questions", make_questions, read_questions, {"questions.jsonl": "json"}),
    Reader(
        "driving text",
        written("answer.txt", driving_text.trajectory_text(np.ones((8, 3))) + "\n" + MOTION),
        read_driving_text,
        {"answer.txt": "text"},
    ),
    Reader("card of a model", as_json(provenance.CARD, CARD), read_card, {provenance.CARD: "json"}),
    Reader(
        "safetensors",
        lambda f: save_file(tensors(), f / "model.safetensors"),
        read_tensors,
        {"model.safetensors": "safetensors"},
    ),
    Reader(
        "shards",
        make_shards,
        read_shards,
        {tensor_files.INDEX_NAME: "json", "model-*.safetensors": "safetensors"},
    ),
    Reader("PyTorch's .bin", make_bin, read_tensors, {"pytorch_model.bin": "bytes"}),
    Reader(
        "state of reinforcement",
        make_state,
        read_state,
        {"model.safetensors": "safetensors", "moments-00000.safetensors": "safetensors"},
    ),
    Reader(
        "checkpoint of training",
        make_checkpoint,
        read_checkpoint,
        {"weights.safetensors": "safetensors", "state.json": "json"},
    ),
    Reader(
        "ego-status MLP",
        make_mlp,
        ego_status_mlp.load_mlp,
        {"*.json": "json", "*.safetensors": "safetensors"},
    ),
    Reader(
        "learned scorer",
        make_scorer,
        scorer_head.load_scorer,
        {"*.json": "json", "*.safetensors": "safetensors"},
    ),
    Reader("text tokenizer", make_tokenizer, read_tokenizer, {text_tokenizer.TOKENIZER_FILE_NAME: "json"}),
    Reader(
        "foreign configuration",
        as_json("config.json", {"d_model": 64, "n_layers": 2, "vision_config": {"hidden_size": 8}}),
        lambda f: foreign_config.config_problems(DriveFineConfig.debug(), f),
        {"config.json": "json"},
    ),
    Reader(
        "configuration of a run",
        as_json("config.json", {"a": 1, "b": {"c": [1, 2]}, "run": {"log_every": 1}}),
        lambda f: run_folder.claim_run_folder(f, {"a": 1, "b": {"c": [1, 2]}, "run": {"log_every": 2}}),
        {"config.json": "json"},
        writes=True,
    ),
    *(
        Reader(
            f"crafted scene cache {rules}",
            make_scenes(version, rules),
            read_scenes(rules),
            {"scenes.pack": "pack", "manifest.json": "json"},
            writes=True,
        )
        for version, rules in (("v11", RULES_V1), ("v22", RULES_V2))
    ),  # with checksums that fit the wrong content
)
