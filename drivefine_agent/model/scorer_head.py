"""A light head that tells from a candidate's hidden states how each PDM sub-score will judge it.

It reads what the planner computes when it is given the candidate as a finished answer, and the candidate's
motion. It is a model of its own, kept beside the planner's in a folder `scorer/`; the planner neither has it
among its weights nor gets a gradient from it.

    scorer/config.json           sizes, sub-scores, the hash of the planner's weights it was trained with
    scorer/model.safetensors     weights

Source: design notes, model.md A25. Shapes: B scenes, N candidates, L = 24 slots, D the planner's width, K
sub-scores.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from drivefine_agent.constants import NUM_POSE_FIELDS, NUM_POSES
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.errors import DataError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_POSE_SCALE = (20.0, 5.0, 0.5)  # [m, m, rad]: what is far, wide and a turn in four seconds


@dataclass(frozen=True)
class ScorerHeadConfig:
    """Sizes of a `ScorerHead`, and what it belongs to."""

    hidden_size: int
    """D."""
    sub_scores: tuple[str, ...]
    """(K,) names."""
    planner_sha256: str
    """`weights_hash` of the planner whose hidden states it learned to read."""
    slot_width: int = 32
    """What is kept of every slot's hidden state."""
    width: int = 256
    """Of the layers behind."""
    dropout: float = 0.1
    """In training."""


class ScorerHead(nn.Module):
    """Flattened slots, their mean, and the motion, through two layers."""

    def __init__(self, config: ScorerHeadConfig) -> None:
        """Random weights from torch's global generator; args: config, the sizes."""
        super().__init__()
        self.config = config
        num_slots = NUM_POSES * NUM_POSE_FIELDS
        self.norm = nn.LayerNorm(config.hidden_size)
        self.slots = nn.Linear(config.hidden_size, config.slot_width)
        num_features = num_slots * config.slot_width + config.hidden_size + 3 * num_slots
        self.layers = nn.Sequential(
            nn.Linear(num_features, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, len(config.sub_scores)),
        )

    def forward(self, hidden: Tensor, poses: Tensor) -> Tensor:
        """(..., K) logits of the sub-scores.

        Args:
          hidden: (..., L, D) the planner's states; no gradient goes back through them.
          poses: (..., 8, 3) the candidate, x [m], y [m], heading [rad], ego frame.
        """
        states = self.norm(hidden.detach().to(self.slots.weight.dtype))
        motion = motion_features(poses.to(states.dtype))
        features = [self.slots(states).flatten(-2), states.mean(dim=-2), motion]
        return self.layers(torch.cat(features, dim=-1))


def motion_features(poses: Tensor) -> Tensor:
    """(..., 72) scaled poses, their differences from the origin on, and the differences of those.

    The last two are velocity and acceleration but for a factor: linear in the poses, at a scale of their own.
    """
    scaled = poses / torch.tensor(_POSE_SCALE, dtype=poses.dtype, device=poses.device)
    start = torch.zeros_like(scaled[..., :1, :])
    first = torch.diff(torch.cat([start, scaled], dim=-2), dim=-2)  # (..., 8, 3)
    second = torch.diff(torch.cat([first[..., :1, :], first], dim=-2), dim=-2)  # (..., 8, 3); first is 0
    return torch.cat([scaled, 8 * first, 32 * second], dim=-2).flatten(-2)


def save_scorer(head: ScorerHead, folder: Path) -> None:
    """Writes a head into a folder."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    write_bytes(folder / WEIGHTS_NAME, save(tensors))
    write_bytes(folder / CONFIG_NAME, (json.dumps(asdict(head.config), indent=1) + "\n").encode())


def load_scorer(folder: Path) -> ScorerHead:
    """The head in a folder, ready to predict.

    Raises:
      DataError: the folder holds none, or its tensors are not those of its configuration.
    """
    if not (folder / CONFIG_NAME).is_file():
        raise DataError(
            f"no learned scorer at {folder} ({CONFIG_NAME} is missing): give a folder `scorer` that "
            "tools/train_scorer.py wrote"
        )
    try:
        values = read_json_object(folder / CONFIG_NAME)
        config = ScorerHeadConfig(**{**values, "sub_scores": tuple(values["sub_scores"])})
        head = ScorerHead(config)
        head.load_state_dict(load_file(folder / WEIGHTS_NAME))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the learned scorer in {folder} is damaged or of another version ({error}): train it again"
        ) from error
    return head.eval()
