"""A refiner that sees the answer and nothing else: a control for what the refinement expert's blocks add."""

from __future__ import annotations

from torch import Tensor, nn

from drivefine_agent.model.backbone.block import RMSNorm
from drivefine_agent.model.config import DriveFineConfig


class MLPRefiner(nn.Module):
    """Two layers from the 24 embeddings of a complete answer to 24 hidden states for the heads.

    At `preset=tiny` a width of 64 has as many parameters as the refinement expert's two blocks.
    """

    def __init__(self, config: DriveFineConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        flat = config.action_spec.answer_length * width
        self.layers = nn.Sequential(
            nn.Linear(flat, config.mlp_refiner_width), nn.SiLU(), nn.Linear(config.mlp_refiner_width, flat)
        )
        self.norm = RMSNorm(width, config.text_config.rms_norm_eps)

    def forward(self, embedded: Tensor) -> Tensor:
        """(B, R, L, D), normed, of embedded answers (B, R, L, D)."""
        return self.norm(embedded + self.layers(embedded.flatten(-2)).view(embedded.shape))
