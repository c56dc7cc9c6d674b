import pytest

from drivefine_agent.data.dataset_paths import DatasetPaths
from drivefine_agent.errors import DataError


def test_the_tree_below_a_root(tmp_path):
    paths = DatasetPaths.from_root(tmp_path)
    assert paths.logs("test") == tmp_path / "navsim_logs" / "test"
    assert paths.sensors("trainval") == tmp_path / "sensor_blobs" / "trainval"
    assert paths.maps_root == tmp_path / "maps"
    assert paths.splits == tmp_path / "splits"
    assert paths.synthetic_scenes_path == tmp_path / "navhard_two_stage" / "synthetic_scene_pickles"
    assert paths.synthetic_sensor_path == tmp_path / "navhard_two_stage" / "sensor_blobs"


def test_navsims_variables(tmp_path):
    (tmp_path / "other").mkdir()
    only_data = DatasetPaths.from_environment({"OPENSCENE_DATA_ROOT": str(tmp_path)})
    assert only_data == DatasetPaths.from_root(tmp_path)
    both = {"OPENSCENE_DATA_ROOT": str(tmp_path), "NUPLAN_MAPS_ROOT": str(tmp_path / "other")}
    assert DatasetPaths.from_environment(both).maps_root == tmp_path / "other"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "OPENSCENE_DATA_ROOT is not set"),
        ({"OPENSCENE_DATA_ROOT": "/no/such/folder"}, "no dataset folder at"),
        (
            {"OPENSCENE_DATA_ROOT": ".", "NUPLAN_MAPS_ROOT": "/no/such/folder"},
            "NUPLAN_MAPS_ROOT names no folder",
        ),
    ],
    ids=["unset", "no data", "no maps"],
)
def test_a_missing_folder_or_variable_is_named(environment, message):
    with pytest.raises(DataError, match=message):
        DatasetPaths.from_environment(environment)
