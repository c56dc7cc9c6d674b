"""Auxiliary head: a coarse bird's-eye grid read off the visual tokens. Training only; plans never use it."""

from __future__ import annotations

from torch import Tensor, nn

from drivefine_agent.model.config import PERCEPTION_CHANNELS, DriveFineConfig

_TOKEN_WIDTH = 16  # of what each visual token contributes; small, so that the tower has to do the work


class PerceptionHead(nn.Module):
    """Logits of the grid's cells, a linear function of all visual tokens."""

    def __init__(self, config: DriveFineConfig) -> None:
        super().__init__()
        self.shape = (PERCEPTION_CHANNELS, config.perception_rows, config.perception_cols)
        num_cells = PERCEPTION_CHANNELS * config.perception_rows * config.perception_cols
        self.reduce = nn.Linear(config.text_config.hidden_size, _TOKEN_WIDTH)
        self.cells = nn.Linear(config.num_visual_tokens * _TOKEN_WIDTH, num_cells)

    def forward(self, visual: Tensor) -> Tensor:
        """(B, channels, rows, cols) logits of (B, num_visual_tokens, D) visual tokens."""
        return self.cells(self.reduce(visual).flatten(1)).unflatten(-1, self.shape)
