import pytest
import yaml

from drivefine_agent.data.scenes import SceneFilter, load_scenes
from drivefine_agent.data.split_writer import write_split
from drivefine_agent.data.splits import Split, StageGroup, known_splits, load_split
from drivefine_agent.errors import DataError


def write(folder, split_text, filter_text="_target_: navsim.common.dataclasses.SceneFilter\ntokens: null\n"):
    (folder / "train_test_split" / "scene_filter").mkdir(parents=True)
    (folder / "train_test_split" / "mine.yaml").write_text(split_text)
    (folder / "train_test_split" / "scene_filter" / "mine.yaml").write_text(filter_text)
    return folder


SPLIT = "defaults:\n- scene_filter: mine\ndata_split: test\n"


def test_the_splits_of_navsim_mini_choose_their_samples(navsim_mini):
    one_stage = load_split("synth_one_stage", [navsim_mini / "splits"])
    assert one_stage.data_split == "test"
    assert one_stage.scene_filter.frame_interval == 1
    assert one_stage.scene_filter.num_future_frames == 10
    assert one_stage.reactive_all_mapping is None
    scenes = load_scenes(navsim_mini / "navsim_logs" / "test", one_stage.scene_filter)
    assert {scene.token for scene in scenes} == set(one_stage.scene_filter.tokens)
    assert len(scenes) == 24

    two_stage = load_split("synth_two_stage", [navsim_mini / "splits"])
    assert len(two_stage.reactive_all_mapping) == 6
    group = two_stage.reactive_all_mapping[0]
    assert (group.token, group.previous_token) == ("35a93a9e9ef11878", "18f09708cbf89f5c")
    assert group.pairs[0] == ("e55aa25b5c1b1f5a7", "9f188cf1348b9fc00")
    assert len(load_scenes(navsim_mini / "navsim_logs" / "test", two_stage.scene_filter)) == 12


def test_a_split_may_be_given_by_its_path(navsim_mini):
    path = navsim_mini / "splits" / "train_test_split" / "synth_one_stage.yaml"
    assert load_split(path) == load_split("synth_one_stage", [navsim_mini / "splits"])


def test_tokens_of_digits_stay_text_quoted_or_not(tmp_path):
    tokens = "tokens:\n- 0123456789012345\n- '0123456789012346'\n- 12345678901234e1\n- 0x12\n"
    split = load_split("mine", [write(tmp_path, SPLIT, tokens)])
    assert split.scene_filter.tokens == ("0123456789012345", "0123456789012346", "12345678901234e1", "0x12")


@pytest.mark.parametrize("null", ["null", "Null", "~", ""])
def test_every_spelling_of_null_means_none(tmp_path, null):
    split = load_split(
        "mine", [write(tmp_path, SPLIT, f"tokens: {null}\nmax_scenes: {null}\nhas_route: False\n")]
    )
    assert split.scene_filter == SceneFilter(has_route=False)


def test_an_unknown_split_lists_the_known_ones_and_suggests(navsim_mini):
    assert known_splits([navsim_mini / "splits"]) == ["synth_one_stage", "synth_two_stage"]
    with pytest.raises(
        DataError, match=r"'synth_one_stage', 'synth_two_stage'.*did you mean 'synth_one_stage'"
    ):
        load_split("synth_onestage", [navsim_mini / "splits"])


@pytest.mark.parametrize(
    ("split_text", "filter_text", "message"),
    [
        (SPLIT + "dta_split: x\n", "", r"got \['dta_split'\]"),
        ("defaults:\n- scene_filter: mine\n", "", "'data_split'"),
        ("data_split: test\n", "", "needs a scene filter"),
        ("data_split: test\nscene_filter: x\n", "", "'scene_filter', got list and str"),
        ("data_split: test\ndefaults: 5\n", "", "'scene_filter', got str and dict"),
        ("defaults:\n- scene_filter: other\ndata_split: test\n", "", "'other', but there is no"),
        (
            f"defaults:\n- scene_filter: {'x' * 500}\ndata_split: test\n",
            "",
            "names the scene filter 'x{100}', but",
        ),
        (SPLIT, "frame_interval: -1\n", r"frame_interval must be at least 1 .* got -1, in .*mine\.yaml"),
        (SPLIT, "num_frames: 3\n", r"\['num_frames'\].*did you mean 'max_scenes'|\['num_frames'\]"),
        (SPLIT, "num_future_frames: ten\n", "'num_future_frames' must be an integer, got 'ten'"),
        (SPLIT, "has_route: maybe\n", "'has_route' must be true or false"),
        (SPLIT, "tokens: abc\n", "'tokens' must be a list"),
        (SPLIT, "tokens: [a\n", "not a YAML file"),
        (SPLIT + "reactive_all_mapping:\n- [a, b]\n", "tokens: null\n", "group 0 in"),
    ],
    ids=[
        "split key",
        "no data_split",
        "no filter",
        "filter is a text",
        "defaults are a number",
        "no filter file",
        "long name",
        "interval",
        "filter key",
        "number",
        "bool",
        "list",
        "yaml",
        "map",
    ],
)
def test_a_damaged_split_is_one_clear_error(tmp_path, split_text, filter_text, message):
    folder = write(tmp_path, split_text, filter_text)
    with pytest.raises(DataError, match=message):
        load_split("mine", [folder])


SPLITS = [
    Split(
        "train",
        "trainval",
        SceneFilter(frame_interval=2, log_names=("2021_a", "b"), tokens=("0123", "1e5", "null")),
    ),
    Split("all", "mini", SceneFilter(tokens=())),
    Split(
        "two_stage",
        "test",
        SceneFilter(
            num_future_frames=8,
            frame_interval=1,
            include_synthetic_scenes=True,
            reactive_synthetic_initial_tokens=("0" * 17, "1" * 17),
        ),
        (StageGroup("a", "b", (("0" * 17, "1" * 17),)),),
    ),
]


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.name)
def test_write_then_read_gives_the_same_split(tmp_path, split):
    write_split(tmp_path, split)
    assert load_split(split.name, [tmp_path]) == split


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.name)
def test_an_ordinary_yaml_reader_sees_texts_and_navsims_structure(tmp_path, split):
    path = write_split(tmp_path, split)
    content = yaml.safe_load(path.read_text())
    assert content["defaults"] == [{"scene_filter": split.name}]
    assert content["data_split"] == split.data_split
    scene_filter = yaml.safe_load((path.parent / "scene_filter" / path.name).read_text())
    assert scene_filter["_target_"] == "navsim.common.dataclasses.SceneFilter"
    assert scene_filter["tokens"] == (
        None if split.scene_filter.tokens is None else list(split.scene_filter.tokens)
    )
    if split.reactive_all_mapping:
        assert content["reactive_all_mapping"] == [["a", "b", [["0" * 17, "1" * 17]]]]


def test_a_plain_split_has_no_keys_that_navsim_1_does_not_know(tmp_path):
    path = write_split(tmp_path, SPLITS[0])
    known = {
        "num_history_frames",
        "num_future_frames",
        "frame_interval",
        "has_route",
        "max_scenes",
        "log_names",
        "tokens",
    }
    assert set(yaml.safe_load((path.parent / "scene_filter" / path.name).read_text())) == known | {
        "_target_",
        "_convert_",
    }


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="name"):
        write_split(tmp_path, Split(name, "test", SceneFilter()))
