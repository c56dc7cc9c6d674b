"""The scripts of a real NAVSIM 2.2 and our evaluation on the same dataset: the same CSVs, one stage and two.

Skipped where no NAVSIM 2 can be imported. NAVSIM may live in another environment than ours: name its
interpreter in DRIVEFINE_NAVSIM_PYTHON (default: the interpreter that runs the tests).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
INTERPRETER = os.environ.get("DRIVEFINE_NAVSIM_PYTHON", sys.executable)
# NAVSIM 2 told by a feature, not by a version string: its metric cache has the map's parameters.
PROBE = """
import os; os.environ.setdefault("NUPLAN_MAPS_ROOT", ".")
from dataclasses import fields
from pathlib import Path
import navsim.planning.script
from navsim.planning.metric_caching.metric_cache import MetricCache
assert "map_parameters" in {field.name for field in fields(MetricCache)}, "this is NAVSIM 1.x"
print(list(navsim.planning.script.__path__)[0])
"""

pytestmark = [pytest.mark.navsim, pytest.mark.slow]


@pytest.fixture(scope="module")
def scripts() -> Path:
    probe = subprocess.run([INTERPRETER, "-c", PROBE], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        last_line = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"{INTERPRETER} cannot import NAVSIM 2 ({last_line}); set DRIVEFINE_NAVSIM_PYTHON")
    return Path(probe.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def dataset(navsim_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: nuplan-devkit makes a lock folder beside the maps."""
    return Path(shutil.copytree(navsim_mini, tmp_path_factory.mktemp("official") / "data"))


def run_official(scripts: Path, dataset: Path, script: str, *overrides: str) -> None:
    search_path = f"pkg://navsim.planning.script.config.common,file://{dataset / 'splits'}"
    environment = {
        **os.environ,
        "OPENSCENE_DATA_ROOT": str(dataset),
        "NUPLAN_MAPS_ROOT": str(dataset / "maps"),
        "NAVSIM_EXP_ROOT": str(dataset / "exp"),
        "OMP_NUM_THREADS": "1",
    }
    command = [INTERPRETER, str(scripts / script), f"hydra.searchpath=[{search_path}]", "worker=sequential"]
    done = subprocess.run(
        [*command, *overrides], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, f"{script} failed:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


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
    scripts: Path,
    dataset: Path,
    tmp_path: Path,
) -> None:
    common = (f"train_test_split={split}", f"metric_cache_path={tmp_path / 'cache'}")
    run_official(scripts, dataset, "run_metric_caching.py", *common)
    run_official(
        scripts,
        dataset,
        script,
        *common,
        *official,
        "agent=constant_velocity_agent",
        f"output_dir={tmp_path / 'official'}",
        "experiment_name=official",
    )
    (path,) = (tmp_path / "official").glob("*.csv")
    command = [sys.executable, str(ROOT / "tools" / "evaluate.py"), "agent=constant_velocity", *ours]
    command += [f"dataset_root={dataset}", f"train_test_split={split}", f"output_dir={tmp_path / 'ours'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    theirs, own = (
        pd.read_csv(file, index_col=0).set_index("token")
        for file in (path, tmp_path / "ours" / "results.csv")
    )
    assert list(own.columns) == list(theirs.columns)
    assert set(own.index) == set(theirs.index)
    assert list(own.index[-3:]) == list(theirs.index[-3:]) or split == "synth_one_stage"
    own = own.loc[theirs.index]
    assert (own["valid"] == theirs["valid"]).all()
    values = [table.drop(columns="valid").to_numpy(dtype=np.float64) for table in (own, theirs)]
    np.testing.assert_allclose(values[0], values[1], rtol=0.0, atol=1e-9, equal_nan=True)
