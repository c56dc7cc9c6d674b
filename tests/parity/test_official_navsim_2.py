"""The scripts of a real NAVSIM 2.2 and our evaluation on the same dataset: the same CSVs, one stage and two.

Skipped where no NAVSIM 2 can be imported; see `official_scripts.py`.
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from official_scripts import OfficialNavsim, find_official_navsim, run_ours

pytestmark = [pytest.mark.navsim, pytest.mark.slow]


@pytest.fixture(scope="module")
def navsim_2() -> OfficialNavsim:
    navsim = find_official_navsim()
    if not navsim.is_2:
        pytest.skip("this is NAVSIM 1.1")
    return navsim


@pytest.fixture(scope="module")
def dataset(navsim_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: nuplan-devkit makes a lock folder beside the maps."""
    return Path(shutil.copytree(navsim_mini, tmp_path_factory.mktemp("official") / "data"))


@pytest.mark.parametrize(
    ("script", "split", "official", "ours"),
    [
        (
            "run_pdm_score_one_stage.py",
            "synth_one_stage",
            ("traffic_agents=reactive",),
            ("benchmark=navsim_v2", "traffic=reactive", "pdms=false"),
        ),
        ("run_pdm_score.py", "synth_two_stage", (), ("benchmark=navhard_two_stage",)),
    ],
)
def test_the_same_csv(
    script: str,
    split: str,
    official: tuple[str, ...],
    ours: tuple[str, ...],
    navsim_2: OfficialNavsim,
    dataset: Path,
    tmp_path: Path,
) -> None:
    common = (f"train_test_split={split}", f"metric_cache_path={tmp_path / 'cache'}")
    navsim_2.run(dataset, "run_metric_caching.py", *common)
    theirs = ("agent=constant_velocity_agent", "experiment_name=official")
    navsim_2.run(dataset, script, *common, *official, *theirs, f"output_dir={tmp_path / 'official'}")
    (path,) = (tmp_path / "official").glob("*.csv")
    own_paths = (f"dataset_root={dataset}", f"train_test_split={split}", f"output_dir={tmp_path / 'ours'}")
    run_ours("evaluate.py", "agent=constant_velocity", *ours, *own_paths)

    official_rows, own = (
        pd.read_csv(file, index_col=0).set_index("token")
        for file in (path, tmp_path / "ours" / "results.csv")
    )
    assert list(own.columns) == list(official_rows.columns)
    assert set(own.index) == set(official_rows.index)
    assert list(own.index[-3:]) == list(official_rows.index[-3:]) or split == "synth_one_stage"
    own = own.loc[official_rows.index]
    assert (own["valid"] == official_rows["valid"]).all()
    values = [table.drop(columns="valid").to_numpy(dtype=np.float64) for table in (own, official_rows)]
    np.testing.assert_allclose(values[0], values[1], rtol=0.0, atol=1e-9, equal_nan=True)
