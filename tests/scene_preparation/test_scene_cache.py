import json
import multiprocessing
import os
import pickle
import signal
import struct
import time
import zlib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivefine_agent.data.maps import load_map
from drivefine_agent.data.scenes import SceneFilter, load_scenes
from drivefine_agent.data.types import SceneWindow
from drivefine_agent.errors import DataError, WorkerError
from drivefine_agent.scoring.build import build_scoring_scene
from drivefine_agent.scoring.build_v2 import build_scoring_scene_v2
from drivefine_agent.scoring.cache import SceneCache, SceneCacheWriter, finish_cache, part_name
from drivefine_agent.scoring.cache_build import (
    Portion,
    build_portion,
    build_scene_cache,
    scene_refs,
    window_checksum,
)
from drivefine_agent.scoring.cache_layout import RULES_V1, RULES_V2
from drivefine_agent.scoring.cache_pack import PackWriter
from drivefine_agent.scoring.cache_roads import PieceReader, PieceWriter, PolygonReader
from drivefine_agent.scoring.scorer import score_v1
from drivefine_agent.scoring.types import ScoringScene


@pytest.fixture(scope="module")
def windows(navsim_mini: Path) -> list[SceneWindow]:
    return load_scenes(navsim_mini / "navsim_logs" / "test", SceneFilter())[::2]


@pytest.fixture(scope="module")
def scenes(navsim_mini: Path, windows: list[SceneWindow]) -> list[ScoringScene]:
    return [build_scoring_scene(w, load_map(navsim_mini / "maps", w.map_name)) for w in windows]


@pytest.fixture
def folder(tmp_path: Path, scenes: list[ScoringScene]) -> Path:
    with SceneCacheWriter(tmp_path / "cache", scenes_per_part=3) as writer:
        for scene in scenes:
            writer.add(scene)
    return tmp_path / "cache"


def assert_equal(ours: Any, expected: Any) -> None:
    assert type(ours) is type(expected)
    for field in fields(expected):
        a, b = getattr(ours, field.name), getattr(expected, field.name)
        if is_dataclass(b):
            assert_equal(a, b)
        elif isinstance(b, np.ndarray):
            assert a.dtype == b.dtype, field.name
            assert a.shape == b.shape, field.name
            assert a.tobytes() == b.tobytes(), field.name  # bit for bit: the sign of 0 counts too
        else:
            assert a == b, field.name


def test_scenes_come_out_bit_for_bit_as_they_went_in(folder: Path, scenes: list[ScoringScene]) -> None:
    cache = SceneCache(folder)
    assert cache.tokens == tuple(scene.token for scene in scenes)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "scenes.pack"]
    for scene in scenes:
        assert_equal(cache[scene.token], scene)


def test_scenes_of_navsim_2_come_out_as_they_went_in(
    navsim_mini: Path, windows: list[SceneWindow], scenes: list[ScoringScene], tmp_path: Path
) -> None:
    built = [build_scoring_scene_v2(w, load_map(navsim_mini / "maps", w.map_name)) for w in windows]
    assert any(scene.red_light_ids for scene in built)
    bare = replace(built[0], token="bare", red_light_ids=(), red_light_on=np.zeros((41, 0), dtype=bool))
    with SceneCacheWriter(tmp_path, scenes_per_part=3, rules=RULES_V2) as writer:
        for scene in (*built, bare):
            writer.add(scene)
    cache = SceneCache(tmp_path, RULES_V2)
    for scene in (*built, bare):
        assert_equal(cache[scene.token], scene)
    with pytest.raises(DataError, match="rules 'navsim_v2', but 'navsim_v1' are needed"):
        SceneCache(tmp_path)
    with pytest.raises(DataError, match="must hold such scenes, got 'navsim_v2'"):
        finish_cache(tmp_path, {})
    mixed = SceneCacheWriter(tmp_path / "mixed")
    mixed.add(built[0])
    with pytest.raises(ValueError, match="of the same rules"):
        mixed.close()


def test_a_cached_scene_scores_like_the_built_one(folder: Path, scenes: list[ScoringScene]) -> None:
    scene = scenes[0]
    poses = scene.human_poses[None]
    assert score_v1(SceneCache(folder)[scene.token], poses).score == score_v1(scene, poses).score


def test_a_cache_can_be_sent_to_another_process(folder: Path, scenes: list[ScoringScene]) -> None:
    cache = SceneCache(folder)
    assert_equal(cache[scenes[0].token], scenes[0])  # the shard is open
    data = pickle.dumps(cache)
    assert len(data) < 1000
    assert_equal(pickle.loads(data)[scenes[0].token], scenes[0])


def test_a_missing_scene_is_named(folder: Path) -> None:
    cache = SceneCache(folder)
    assert "feed" not in cache
    with pytest.raises(KeyError, match="'feed' is not in the scene cache"):
        cache["feed"]


def test_a_scene_that_failed_says_why(tmp_path: Path, scenes: list[ScoringScene]) -> None:
    with SceneCacheWriter(tmp_path) as writer:
        writer.add(scenes[0])
        writer.add_failure("bad", "it has no route")
    with pytest.raises(KeyError, match=r"'bad'.*could not be prepared: it has no route"):
        SceneCache(tmp_path)["bad"]


def test_failures_are_listed_in_one_order(tmp_path: Path, scenes: list[ScoringScene]) -> None:
    """Workers find them in any order."""
    manifests = []
    for name, tokens in (("a", ["x", "y"]), ("b", ["y", "x"])):
        (tmp_path / name).mkdir()
        with PackWriter(tmp_path / name / "part-00000.pack", RULES_V1) as writer:
            writer.add(scenes[0])
        finish_cache(tmp_path / name, {token: "no route" for token in tokens})
        manifests.append((tmp_path / name / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


def test_a_scene_without_tracks_is_kept(tmp_path: Path, scenes: list[ScoringScene]) -> None:
    scene = scenes[0]
    empty = replace(
        scene,
        track_corners=scene.track_corners[:, :0],
        track_center=scene.track_center[:, :0],
        track_exists=scene.track_exists[:, :0],
        track_is_agent=scene.track_is_agent[:0],
        track_is_stopped=scene.track_is_stopped[:0],
        track_type=scene.track_type[:0],
        track_tokens=(),
        track_poses=scene.track_poses[:, :0],
        track_sizes=scene.track_sizes[:0],
    )
    with SceneCacheWriter(tmp_path) as writer:
        writer.add(empty)
    assert_equal(SceneCache(tmp_path)[scene.token], empty)


def test_a_scene_made_by_hand_is_refused(tmp_path: Path, scenes: list[ScoringScene]) -> None:
    with pytest.raises(ValueError, match="track_poses"), SceneCacheWriter(tmp_path) as writer:
        writer.add(replace(scenes[0], track_poses=None))
    assert not list(tmp_path.iterdir())


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(bytes(data))


def pack_of(folder: Path) -> Path:
    return folder / "scenes.pack"


def flip_bytes_of_table(folder: Path, name: str) -> None:
    data = pack_of(folder).read_bytes()
    meta = json.loads(data[data.rindex(b'{"rules"') :])
    _, shape, offset, _ = meta["tables"][name]
    flip_byte(pack_of(folder), offset + shape[0] // 2)


@pytest.mark.parametrize("name", ["index.crc", "roads.polygons.pieces", "roads.lines.blocks"])
def test_a_flipped_byte_in_a_table_is_found(folder: Path, name: str) -> None:
    flip_bytes_of_table(folder, name)
    with pytest.raises(DataError, match=r"damaged.*scenes\.pack.*build_scene_cache"):
        list(SceneCache(folder).values())


@pytest.mark.parametrize("position", [20, 200, -1], ids=["header", "scene", "meta"])
def test_a_flipped_byte_is_found(folder: Path, scenes: list[ScoringScene], position: int) -> None:
    flip_byte(pack_of(folder), position)
    with pytest.raises(DataError, match=r"damaged.*scenes\.pack.*build_scene_cache"):
        SceneCache(folder)[scenes[0].token]


@pytest.mark.parametrize("size", [0, 40, 1000], ids=["empty", "in the header", "in a scene"])
def test_a_truncated_file_is_found(folder: Path, scenes: list[ScoringScene], size: int) -> None:
    path = pack_of(folder)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"(empty|truncated|damaged).*scenes\.pack.*build_scene_cache"):
        SceneCache(folder)[scenes[0].token]


def test_a_foreign_file_is_named(folder: Path, scenes: list[ScoringScene]) -> None:
    pack_of(folder).write_bytes(b"PK" + bytes(100))
    with pytest.raises(DataError, match=r"not a file of a scene cache: .*scenes\.pack"):
        SceneCache(folder)[scenes[0].token]


def test_another_version_is_named(folder: Path) -> None:
    path = pack_of(folder)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8, 99)
    struct.pack_into("<I", data, 44, zlib.crc32(bytes(data[:44])))
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="version 99, this program reads version 3"):
        SceneCache(folder)
    # The first version had a manifest with its number, and shards.
    manifest = {"format": "drivefine-scene-cache", "version": 1, "rules": "navsim_v1", "shards": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"version 1, .*version 3: .*build the cache again into another"):
        SceneCache(folder)


def test_a_missing_file_is_named(folder: Path, scenes: list[ScoringScene]) -> None:
    pack_of(folder).unlink()
    with pytest.raises(DataError, match=r"missing: .*scenes\.pack"):
        SceneCache(folder)[scenes[0].token]


def test_a_folder_without_a_manifest_is_no_cache(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json.*holds no scene cache"):
        SceneCache(tmp_path)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="building was interrupted"):
        SceneCache(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "manifest of the scene cache is damaged"),
        ('{"a": 1}', "not the manifest of a scene cache"),
        ('{"format": "drivefine-scene-cache", "version": 0}', "version 0, .* version 3"),
    ],
    ids=["damaged", "foreign", "old"],
)
def test_a_bad_manifest_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=message):
        SceneCache(folder)


def test_an_exception_while_writing_leaves_no_manifest(tmp_path: Path, scenes: list[ScoringScene]) -> None:
    def write_one_and_stop() -> None:
        with SceneCacheWriter(tmp_path, scenes_per_part=1) as writer:
            writer.add(scenes[0])
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_one_and_stop()
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.pack"]


def test_a_stopped_build_goes_on_where_it_was_and_gives_the_same_file(
    navsim_mini: Path, windows: list[SceneWindow], scenes: list[ScoringScene], tmp_path: Path
) -> None:
    maps_root = navsim_mini / "maps"
    refs = scene_refs(windows, maps_root)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    build_scene_cache(refs, maps_root, whole)

    stopped.mkdir()  # as a killed build leaves it: two parts, one of them damaged, and half of a third
    for number, portion in enumerate([refs[5:8], refs[:3]]):
        build_portion(Portion(tuple(portion), maps_root, stopped / part_name(number), RULES_V1))
    flip_byte(stopped / part_name(1), -1)
    (stopped / f".{part_name(2)}.host.123.0123abcd.part").write_bytes(b"half")
    with pytest.raises(DataError, match="building was interrupted"):
        SceneCache(stopped)
    result = build_scene_cache(refs, maps_root, stopped)
    assert (result.num_built, result.num_kept, dict(result.failures)) == (len(scenes) - 3, 3, {})
    assert sorted(path.name for path in stopped.iterdir()) == [".lock", "manifest.json", "scenes.pack"]
    assert pack_of(stopped).read_bytes() == pack_of(whole).read_bytes()
    cache = SceneCache(stopped)
    assert set(cache.tokens) == {scene.token for scene in scenes}
    for scene in scenes:
        assert_equal(cache[scene.token], scene)
    again = build_scene_cache(refs, maps_root, stopped)
    assert (again.num_built, again.num_kept) == (0, len(scenes))


def test_a_scene_whose_log_changed_is_prepared_again(
    navsim_mini: Path, windows: list[SceneWindow], tmp_path: Path
) -> None:
    maps_root = navsim_mini / "maps"
    refs = scene_refs(windows[:4], maps_root)
    changed = [replace(refs[0], fingerprint=refs[0].fingerprint ^ 1), *refs[1:]]
    build_scene_cache(changed, maps_root, tmp_path)
    result = build_scene_cache(refs, maps_root, tmp_path)
    assert (result.num_built, result.num_kept) == (1, 3)
    assert len(SceneCache(tmp_path)) == 4
    assert build_scene_cache(refs, maps_root, tmp_path).num_built == 0


def test_the_fingerprint_covers_what_scoring_reads(windows: list[SceneWindow]) -> None:
    window = windows[0]
    checksum = window_checksum(window)
    assert window_checksum(replace(window)) == checksum
    for index, change in [
        (3, {"roadblock_ids": ("1",)}),
        (3, {"traffic_lights": ((1, True),)}),
        (3, {"ego_velocity": np.ones(2)}),
        (9, {"ego_pose": np.ones(3)}),
        (9, {"annotations": None}),
    ]:
        frames = list(window.frames)
        frames[index] = replace(frames[index], **change)
        assert window_checksum(replace(window, frames=tuple(frames))) != checksum, change


def test_a_cache_is_built_anew_on_demand(navsim_mini: Path, windows: list[SceneWindow], folder: Path) -> None:
    result = build_scene_cache(
        scene_refs(windows[:2], navsim_mini / "maps"), navsim_mini / "maps", folder, overwrite=True
    )
    assert result.num_built == 2
    assert len(SceneCache(folder)) == 2


def test_foreign_files_are_never_removed(
    navsim_mini: Path, windows: list[SceneWindow], tmp_path: Path
) -> None:
    foreign = tmp_path / "part-00000.pack"
    foreign.write_bytes(b"something else entirely")
    with pytest.raises(DataError, match="not a file of a scene cache"):
        build_scene_cache(scene_refs(windows, navsim_mini / "maps"), navsim_mini / "maps", tmp_path)
    assert foreign.exists()


def test_scenes_that_fail_are_listed_and_cost_no_other(
    navsim_mini: Path, windows: list[SceneWindow], tmp_path: Path
) -> None:
    refs = scene_refs(windows[:3], navsim_mini / "maps")
    refs[1] = replace(refs[1], num_future_frames=6)
    result = build_scene_cache(refs, navsim_mini / "maps", tmp_path)
    assert result.num_built == 2
    assert list(result.failures) == [refs[1].token]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert "10 future frames" in manifest["failures"][refs[1].token]
    # The next build tries again, and the failure is gone.
    build_scene_cache(scene_refs(windows[:3], navsim_mini / "maps"), navsim_mini / "maps", tmp_path)
    assert SceneCache(tmp_path).failures == {}


def test_a_scene_whose_rebuild_fails_is_not_served_from_old_data(
    navsim_mini: Path, windows: list[SceneWindow], tmp_path: Path
) -> None:
    maps_root = navsim_mini / "maps"
    refs = scene_refs(windows[:3], maps_root)
    build_scene_cache(refs, maps_root, tmp_path)
    changed = replace(refs[1], num_future_frames=6, fingerprint=refs[1].fingerprint ^ 1)
    result = build_scene_cache([refs[0], changed, refs[2]], maps_root, tmp_path)
    assert (result.num_built, result.num_kept, list(result.failures)) == (0, 2, [refs[1].token])
    cache = SceneCache(tmp_path)
    assert set(cache.tokens) == {refs[0].token, refs[2].token}
    assert "10 future frames" in cache.failures[refs[1].token]
    with pytest.raises(KeyError, match=r"could not be prepared: .*10 future frames"):
        cache[refs[1].token]
    build_scene_cache(refs, maps_root, tmp_path)
    assert set(SceneCache(tmp_path).tokens) == {ref.token for ref in refs}


def test_a_rebuild_repairs_just_the_damaged_scene(
    navsim_mini: Path, windows: list[SceneWindow], scenes: list[ScoringScene], tmp_path: Path
) -> None:
    maps_root = navsim_mini / "maps"
    refs = scene_refs(windows[:3], maps_root)
    build_scene_cache(refs[:2], maps_root, tmp_path)
    whole = pack_of(tmp_path).read_bytes()
    first = SceneCache(tmp_path).tokens[0]
    flip_byte(pack_of(tmp_path), 200)  # in the first scene, see above
    result = build_scene_cache(refs[:2], maps_root, tmp_path)
    assert (result.num_built, result.num_kept, dict(result.failures)) == (1, 1, {})
    assert pack_of(tmp_path).read_bytes() == whole
    # Others can be added; the damaged scene is then told as one that the cache lacks.
    flip_byte(pack_of(tmp_path), 200)
    build_scene_cache(refs[2:], maps_root, tmp_path)
    cache = SceneCache(tmp_path)
    assert set(cache.tokens) == {ref.token for ref in refs} - {first}
    assert "damaged" in cache.failures[first]
    # Shared roads that are damaged cost the file.
    flip_bytes_of_table(tmp_path, "roads.lines.blocks")
    result = build_scene_cache(refs, maps_root, tmp_path)
    assert (result.num_built, result.num_kept) == (3, 0)
    assert SceneCache(tmp_path).failures == {}


def _build(navsim_mini: str, folder: str) -> None:
    """Body of a process that builds a cache with two workers."""
    root = Path(navsim_mini)
    windows = load_scenes(root / "navsim_logs" / "test", SceneFilter())[::2]
    try:
        build_scene_cache(scene_refs(windows, root / "maps"), root / "maps", Path(folder), num_workers=2)
    except WorkerError as error:
        (Path(folder) / "error.txt").write_text(str(error))


def _children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "build"])
def test_a_killed_build_is_told_and_goes_on_to_the_same_file(
    navsim_mini: Path, windows: list[SceneWindow], tmp_path: Path, victim: str
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    build = multiprocessing.get_context("spawn").Process(target=_build, args=(str(navsim_mini), str(killed)))
    build.start()
    deadline = time.monotonic() + 100.0
    while not list(killed.glob("part-*.pack")):  # a part is there, the others are not
        assert build.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = [
        pid for pid in _children_of(build.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(workers[-1] if victim == "worker" else build.pid, signal.SIGKILL)
    build.join(timeout=60.0)
    assert build.exitcode == (0 if victim == "worker" else -signal.SIGKILL)
    if victim == "worker":
        message = (killed / "error.txt").read_text()
        assert "got one that died" in message
        assert any(window.log_name in message for window in windows)
        (killed / "error.txt").unlink()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):  # orphans end by themselves
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (killed / "manifest.json").exists()

    refs = scene_refs(windows, navsim_mini / "maps")
    result = build_scene_cache(refs, navsim_mini / "maps", killed)
    assert result.num_kept > 0
    build_scene_cache(refs, navsim_mini / "maps", whole)
    assert pack_of(killed).read_bytes() == pack_of(whole).read_bytes()
    assert sorted(path.name for path in killed.iterdir()) == [".lock", "manifest.json", "scenes.pack"]


@pytest.mark.slow
def test_processes_build_the_same_cache(
    navsim_mini: Path, windows: list[SceneWindow], scenes: list[ScoringScene], tmp_path: Path
) -> None:
    result = build_scene_cache(
        scene_refs(windows, navsim_mini / "maps"), navsim_mini / "maps", tmp_path, num_workers=2
    )
    assert result.num_built == len(scenes)
    cache = SceneCache(tmp_path)
    for scene in scenes:
        assert_equal(cache[scene.token], scene)
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    ("rows", "ring_offsets", "message"),
    [
        ([0], [0, 1], "at least 4 vertices"),
        ([1], [0, 1], "numbers of polygons must be in 0 ... 0"),
        ([-1], [0, 1], "numbers of polygons must be in 0 ... 0"),
        ([0], [0, 2], "must cut 1 into slices"),
        ([0], [1, 1], "must cut 1 into slices"),
    ],
)
def test_forged_tables_of_roads_are_refused(rows: list[int], ring_offsets: list[int], message: str) -> None:
    """Numbers that lead out of an array, and a ring of two vertices, whatever the checksums say."""
    writer = PieceWriter(2)
    piece = writer.add_piece(np.array([[0.0, 0.0], [1.0, 0.0]]))
    pieces = PieceReader(writer.arrays(), 2)
    arrays = {
        "kind": np.zeros(1, dtype=np.int8),
        "ids": np.frombuffer(b"a", dtype=np.uint8),
        "part_offsets": np.array([0, 1], dtype=np.int32),
        "ring_offsets": np.array(ring_offsets, dtype=np.int32),
        "pieces": np.array([piece], dtype=np.int32),
    }
    with pytest.raises(ValueError, match=message):
        PolygonReader(arrays, pieces).take(np.array(rows, dtype=np.int32))
