"""`agent=drivefine*` in a Hydra application that knows nothing of us, as NAVSIM's scripts are."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from drivefine_agent.agent import DriveFineAgent

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "navsim_configs" / "plugin"
AGENTS = ("drivefine", "drivefine_tiny", "drivefine_best_of_n")

APPLICATION = """
import hydra
from omegaconf import OmegaConf

@hydra.main(version_base=None, config_path="config", config_name="main")
def main(config):
    print(OmegaConf.to_yaml(config))

main()
"""


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A script with an agent group of its own and a search path like NAVSIM's."""
    (tmp_path / "config").mkdir()
    (tmp_path / "common" / "agent").mkdir(parents=True)
    (tmp_path / "common" / "agent" / "constant_velocity_agent.yaml").write_text("_target_: theirs\n")
    (tmp_path / "common" / "agent" / "human.yaml").write_text("_target_: their_human\n")
    main = {
        "hydra": {"searchpath": [f"file://{tmp_path / 'common'}"], "run": {"dir": str(tmp_path / "out")}},
        "defaults": [{"agent": "constant_velocity_agent"}, "_self_"],
    }
    (tmp_path / "config" / "main.yaml").write_text(yaml.safe_dump(main))
    script = tmp_path / "application.py"
    script.write_text(APPLICATION)
    return script


def run(script: Path, *overrides: str) -> dict:
    command = [sys.executable, str(script), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)["agent"]


@pytest.mark.parametrize("agent", AGENTS)
def test_our_agents_resolve_by_name_alone(application: Path, agent: str) -> None:
    config = run(application, f"agent={agent}", "agent.checkpoint_path=somewhere", "agent.strict=true")
    assert config.pop("_target_") == "drivefine_agent.agent.DriveFineAgent"
    assert config.pop("_convert_") == "all"
    assert config["checkpoint_path"] == "somewhere"
    known = set(inspect.signature(DriveFineAgent.__init__).parameters)
    assert set(config) == known - {
        "self",
        "trajectory_sampling",
    }  # all settings are shown, none invented
    DriveFineAgent(**config)


def test_nothing_of_others_is_shadowed(application: Path) -> None:
    assert run(application) == {"_target_": "theirs"}
    assert run(application, "agent=human") == {"_target_": "their_human"}
    names = [path.relative_to(PLUGIN) for path in PLUGIN.rglob("*.yaml")]
    assert len(names) == len(AGENTS)
    assert all(name.name.startswith("drivefine") and name.parent.name == "agent" for name in names)


def test_the_namespace_of_hydra_s_plugins_stays_open() -> None:
    """With an `__init__.py` there, plugins of other distributions would vanish."""
    assert not (ROOT / "hydra_plugins" / "__init__.py").exists()
    source = (ROOT / "hydra_plugins" / "drivefine_searchpath" / "plugin.py").read_text()
    imports = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert all(line.startswith("from hydra.") for line in imports)  # an error there breaks every application
