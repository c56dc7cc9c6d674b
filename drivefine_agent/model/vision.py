"""Image tiles -> visual tokens in the language model's width: SigLIP tower, projector, pooling, stitching."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipVisionModel

from drivefine_agent.model.config import DriveFineConfig


class VisionEncoder(nn.Module):
    """Stock SigLIP tower, read before its final layer norm, as LaViDa does."""

    def __init__(self, config: DriveFineConfig) -> None:
        super().__init__()
        self.tower = SiglipVisionModel(config.vision_config)

    def forward(self, tiles: Tensor) -> Tensor:
        """(B, T, g * g, C) features of (B, T, S, S, 3) uint8 RGB tiles."""
        dtype = self.tower.embeddings.patch_embedding.weight.dtype
        pixels = tiles.flatten(0, 1).permute(0, 3, 1, 2)
        pixels = ((pixels.float() / 255.0 - 0.5) / 0.5).to(dtype)  # SigLIP: mean 0.5, std 0.5
        features = self.tower(pixels, output_hidden_states=True).hidden_states[-1]
        return features.unflatten(0, tiles.shape[:2])


class VisualProjector(nn.Module):
    """Two linear layers, bilinear pooling of each tile, stitching of the tiles, newlines, flattening."""

    def __init__(self, config: DriveFineConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.config = config
        self.layers = nn.Sequential(
            nn.Linear(config.vision_config.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )
        self.newline = nn.Parameter(torch.zeros(width)) if config.image_newline else None
        self.positions = (
            nn.Parameter(torch.zeros(config.num_visual_tokens, width)) if config.learned_positions else None
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, num_visual_tokens, D) of (B, T, g * g, C) tower features."""
        grid, pool = self.config.vision_grid, self.config.pool_size
        rows, cols = self.config.tile_rows, self.config.tile_cols
        batch_size = features.shape[0]
        tokens = self.layers(features)
        if pool != grid:
            maps = tokens.flatten(0, 1).unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
            maps = F.interpolate(maps, size=(pool, pool), mode="bilinear", align_corners=False)
            tokens = maps.permute(0, 2, 3, 1)
        canvas = tokens.reshape(batch_size, rows, cols, pool, pool, -1).transpose(2, 3)
        canvas = canvas.reshape(batch_size, rows * pool, cols * pool, -1)
        visible_rows, visible_cols = self.config.tiles.visible_cells(pool)
        canvas = canvas[:, visible_rows, visible_cols]
        if self.newline is not None:
            newline = self.newline.expand(batch_size, canvas.shape[1], 1, -1)
            canvas = torch.cat([canvas, newline], dim=2)
        visual = canvas.flatten(1, 2)
        if self.positions is None:
            return visual
        return F.layer_norm(visual, visual.shape[-1:]) + self.positions  # places as loud as contents
