"""NAVSIM's feature and target builders: image tiles, prompt and tokenized trajectory as stackable tensors.

They need no weights, only a checkpoint's prompt format, so that NAVSIM's caching runs in many processes. What
they emit is compact: images stay uint8.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from drivefine_agent.constants import NUM_POSES
from drivefine_agent.data.types import Observation
from drivefine_agent.errors import DataError
from drivefine_agent.model.tiles import tile_image
from drivefine_agent.navsim_api import AbstractFeatureBuilder, AbstractTargetBuilder, AgentInput, Scene
from drivefine_agent.navsim_inputs import blank_image as with_blank_image
from drivefine_agent.navsim_inputs import observation_from_agent_input
from drivefine_agent.prompt import PromptBuilder
from drivefine_agent.tokenizer import ActionTokenizer

MAX_CONTEXT_LENGTH = 1024
"""Room for a prompt's text in cached features; the paper's wording takes about 250 tokens."""


class DriveFineFeatureBuilder(AbstractFeatureBuilder):
    """Image tiles and prompt of a scene: what the model reads."""

    def __init__(self, prompts: PromptBuilder, blank_image: bool = False) -> None:
        self._prompts = prompts
        self._blank_image = blank_image

    def get_unique_name(self) -> str:
        """Name under which NAVSIM caches these features; tells image grid, prompt format and ids apart."""
        config, tiles = self._prompts.config, self._prompts.config.tiles
        parts = (
            f"{tiles.cols}x{tiles.rows}x{tiles.size_px}",
            tiles.fit,
            tiles.interpolation,
            config.prompt_type,
            config.pose_format,
            config.prompt_wording,
            _digest(
                repr(config.action_spec), str(config.base_vocab_size), self._prompts.text_tokenizer.as_json()
            ),
        )
        return "drivefine_" + "_".join(parts) + ("_blank" if self._blank_image else "")

    def compute_features(self, agent_input: AgentInput) -> dict[str, Tensor]:
        """Features of one scene.

        Returns:
          `drivefine_tiles` (T, S, S, 3) uint8; `drivefine_context_ids` (1024,) int64, right-padded;
          `drivefine_context_length` () int64.
        """
        return self.from_observation(observation_from_agent_input(agent_input))

    def from_observation(self, observation: Observation) -> dict[str, Tensor]:
        """The same of an observation."""
        if self._blank_image:
            observation = with_blank_image(observation)
        ids = self._prompts.context(observation).ids
        if len(ids) > MAX_CONTEXT_LENGTH:
            raise DataError(
                f"a prompt must have at most {MAX_CONTEXT_LENGTH} tokens, got {len(ids)}: shorten it "
                "(prompts.py)"
            )
        padded = np.full(
            MAX_CONTEXT_LENGTH, self._prompts.config.text_config.pad_token_id or 0, dtype=np.int64
        )
        padded[: len(ids)] = ids
        return {
            "drivefine_tiles": torch.from_numpy(tile_image(observation.image, self._prompts.config.tiles)),
            "drivefine_context_ids": torch.from_numpy(padded),
            "drivefine_context_length": torch.tensor(len(ids)),
        }


class TokenizedTrajectoryTargetBuilder(AbstractTargetBuilder):
    """The driver's trajectory as action ids and as poses."""

    def __init__(self, tokenizer: ActionTokenizer) -> None:
        self._tokenizer = tokenizer

    def get_unique_name(self) -> str:
        """Name under which NAVSIM caches these targets; tells action tables apart."""
        return f"drivefine_target_{_digest(repr(self._tokenizer.spec))}"

    def compute_targets(self, scene: Scene) -> dict[str, Tensor]:
        """`drivefine_actions` (24,) int64; `drivefine_poses` (8, 3) float32."""
        poses = np.asarray(scene.get_future_trajectory(NUM_POSES).poses, dtype=np.float64)
        return {
            "drivefine_actions": torch.from_numpy(self._tokenizer.encode(poses)),
            "drivefine_poses": torch.from_numpy(poses.astype(np.float32)),
        }


def trim_contexts(features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Context ids of batched features, cut to the longest, and lengths, None where all are equal.

    Args:
      features: of `DriveFineFeatureBuilder`, batched.

    Returns:
      (B, C) and (B,).
    """
    lengths = features["drivefine_context_length"]
    longest = int(lengths.max())
    context_ids = features["drivefine_context_ids"][:, :longest]
    return context_ids, None if bool((lengths == longest).all()) else lengths


def _digest(*parts: str) -> str:
    """8 hexadecimal digits that stand for what ids depend on."""
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=4).hexdigest()
