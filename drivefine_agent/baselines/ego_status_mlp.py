"""The blind baseline: a small network from speed, acceleration and route command to a trajectory.

NAVSIM's ego-status MLP in our own words: four linear layers on eight numbers, trained with the mean absolute
error. What a planner with a camera scores above it is what it gained by looking.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from drivefine_agent.baselines.base import PlanningCase
from drivefine_agent.constants import NUM_POSES
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.data.types import Observation, SceneWindow
from drivefine_agent.errors import DataError
from drivefine_agent.navsim_inputs import human_poses, observation_from_window
from drivefine_agent.provenance import warn_of_test_data

NUM_FEATURES = 8  # velocity (2), acceleration (2), driving command (4)
_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class EgoStatusMLPConfig:
    """Size and training of the baseline; defaults are NAVSIM's."""

    hidden_dim: int = 512
    """Width of the three hidden layers."""
    learning_rate: float = 1e-4
    """Adam's."""
    batch_size: int = 64
    num_epochs: int = 100
    seed: int = 0
    """Of initialisation and batch order."""


def ego_status_features(observation: Observation) -> NDArray[np.float32]:
    """(8,) velocity, acceleration, driving command."""
    parts = (observation.velocity, observation.acceleration, observation.driving_command)
    return np.concatenate(parts).astype(np.float32)


def build_mlp(hidden_dim: int) -> nn.Sequential:
    """(B, 8) features to (B, 24) poses."""
    return nn.Sequential(
        nn.Linear(NUM_FEATURES, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, NUM_POSES * 3),
    )


def arrays_from_windows(windows: Sequence[SceneWindow]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, 8) features and (N, 8, 3) human poses."""
    features = np.stack([ego_status_features(observation_from_window(window, None)) for window in windows])
    targets = np.stack([human_poses(window) for window in windows]).astype(np.float32)
    return features, targets


def train_mlp(
    features: NDArray[np.float32],
    targets: NDArray[np.float32],
    config: EgoStatusMLPConfig,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> nn.Sequential:
    """Trains the network from scratch with the mean absolute error.

    Args:
      features: (N, 8).
      targets: (N, 8, 3).
      config: size and training.
      on_epoch: called with the epoch's index and mean loss.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        mlp = build_mlp(config.hidden_dim)
    optimizer = torch.optim.Adam(mlp.parameters(), lr=config.learning_rate)
    inputs, answers = torch.from_numpy(features), torch.from_numpy(targets).flatten(1)  # (N, 8), (N, 24)
    for epoch in range(config.num_epochs):
        total = 0.0
        for batch in torch.randperm(len(inputs), generator=generator).split(config.batch_size):
            loss = nn.functional.l1_loss(mlp(inputs[batch]), answers[batch])
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the ego-status MLP's loss is {loss.item()} in epoch {epoch}: "
                    "lower learning_rate or check the data"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        on_epoch(epoch, total / len(inputs))
    return mlp


def save_mlp(mlp: nn.Sequential, config: EgoStatusMLPConfig, folder: Path) -> None:
    """Writes weights and configuration."""
    weights = {name: value.detach().contiguous() for name, value in mlp.state_dict().items()}
    write_bytes(folder / _CONFIG_FILE, (json.dumps(asdict(config), indent=2) + "\n").encode())
    write_bytes(folder / _WEIGHTS_FILE, save(weights))


def load_mlp(folder: Path) -> nn.Sequential:
    """Reads what `save_mlp` wrote.

    Raises:
      DataError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    try:
        config = EgoStatusMLPConfig(**read_json_object(folder / _CONFIG_FILE))
        mlp = build_mlp(config.hidden_dim)
        mlp.load_state_dict(load_file(folder / _WEIGHTS_FILE))
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"expected an ego-status MLP ({_CONFIG_FILE}, {_WEIGHTS_FILE}) in {folder}: {error}. "
            "Train one with tools/train_ego_status_mlp.py"
        ) from error
    return mlp


class EgoStatusMLP:
    """The trained blind baseline."""

    needs_image = False
    needs_scoring_scene = False

    def __init__(self, checkpoint_path: str | Path) -> None:
        """Args: checkpoint_path, the folder `tools/train_ego_status_mlp.py` wrote."""
        self._folder = Path(checkpoint_path)
        self._mlp: nn.Sequential | None = None

    def name(self) -> str:
        """Name for tables and reports."""
        return "ego_status_mlp"

    def initialize(self) -> None:
        """Loads the weights, once."""
        if self._mlp is None:
            self._mlp = load_mlp(self._folder).eval()
            warn_of_test_data(self._folder)

    @torch.inference_mode()
    def plan(self, cases: Sequence[PlanningCase]) -> NDArray[np.float64]:
        """(B, 8, 3) poses."""
        self.initialize()
        assert self._mlp is not None
        features = np.stack(
            [ego_status_features(observation_from_window(case.window, None)) for case in cases]
        )
        poses: Tensor = self._mlp(torch.from_numpy(features)).reshape(-1, NUM_POSES, 3)
        return poses.double().numpy()
