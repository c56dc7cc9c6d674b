"""Candidate answers with what the PDM score said of them, in files that runs share.

A folder holds parts, `part-*.parquet`, each written whole or not at all; the order of their names is the
order of the rows. `tools/train_scorer.py` writes a part per few scenes and makes only those that are missing;
reinforcement learning writes one per step and process (`rollout.save_scored`). Columns:

    token       of the scene
    kind        where the candidate is from, such as `generated` or `refined`
    actions     24 action ids
    no_at_fault_collisions ... score    the seven columns of PDMS; NaN where scoring failed, never 0

Shapes: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from drivefine_agent.constants import ANSWER_LENGTH
from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.parquet import read_frame
from drivefine_agent.errors import DataError
from drivefine_agent.scoring.types import SubScoresV1

SUB_SCORES = SubScoresV1.names()
_COLUMNS = ("token", "kind", "actions", *SUB_SCORES)


@dataclass(frozen=True)
class Rollouts:
    """R candidates."""

    tokens: NDArray[np.str_]
    """(R,) scene of each."""
    kinds: NDArray[np.str_]
    """(R,) where each is from."""
    actions: NDArray[np.int64]
    """(R, 24) action ids."""
    sub_scores: NDArray[np.float64]
    """(R, 7) in the order of `SUB_SCORES`, NaN where scoring failed."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_valid(self) -> NDArray[np.bool_]:
        """(R,) whether a candidate was scored."""
        return np.asarray(np.isfinite(self.sub_scores).all(axis=-1))

    @property
    def scores(self) -> NDArray[np.float64]:
        """(R,) PDM scores, NaN where scoring failed."""
        return self.sub_scores[:, SUB_SCORES.index("score")]

    def rows(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> Rollouts:
        """Some of them."""
        return Rollouts(self.tokens[keep], self.kinds[keep], self.actions[keep], self.sub_scores[keep])

    @classmethod
    def of_scenes(
        cls,
        tokens: Sequence[str],
        kinds: Sequence[str],
        actions: NDArray[np.int64],
        sub_scores: NDArray[np.float64],
    ) -> Rollouts:
        """Rows of B scenes with N candidates each.

        Args:
          tokens: (B,).
          kinds: (N,), the same in every scene.
          actions: (B, N, 24).
          sub_scores: (B, N, 7).
        """
        num_scenes, num_candidates = actions.shape[:2]
        return cls(
            np.repeat(np.asarray(tokens, dtype=np.str_), num_candidates),
            np.tile(np.asarray(kinds, dtype=np.str_), num_scenes),
            actions.reshape(-1, ANSWER_LENGTH),
            sub_scores.reshape(-1, len(SUB_SCORES)),
        )


def joined(parts: Sequence[Rollouts]) -> Rollouts:
    """One after the other."""
    return Rollouts(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.kinds for part in parts]),
        np.concatenate([part.actions for part in parts]),
        np.concatenate([part.sub_scores for part in parts]),
    )


def part_path(folder: Path, name: str) -> Path:
    """Where a part lies."""
    return folder / f"part-{name}.parquet"


def step_part_path(folder: Path, step: int, rank: int) -> Path:
    """Where a process keeps what it scored in a step of a run."""
    return part_path(folder, f"{step:07d}-{rank:04d}")


def remove_parts_of_ranks_from(folder: Path, step: int, num_ranks: int) -> None:
    """Removes what a step left when more processes did it: its scenes are in the other parts now.

    Args:
      folder: of the parts.
      step: that is done again, after a run was stopped and goes on.
      num_ranks: processes now.
    """
    kept = {step_part_path(folder, step, rank) for rank in range(num_ranks)}
    for path in folder.glob(f"part-{step:07d}-*.parquet"):
        if path not in kept:
            path.unlink(missing_ok=True)


def write_part(path: Path, rollouts: Rollouts) -> None:
    """Writes a part, atomically; equal rows give equal bytes."""
    table = pd.DataFrame(
        {
            "token": rollouts.tokens.astype(object),
            "kind": rollouts.kinds.astype(object),
            "actions": list(rollouts.actions.astype(np.int32)),
            **{name: rollouts.sub_scores[:, i] for i, name in enumerate(SUB_SCORES)},
        }
    )
    write_bytes(path, table.to_parquet(index=False))


def read_part(path: Path) -> Rollouts:
    """The rows of one part.

    Raises:
      DataError: it cannot be read, or is no such file.
    """
    try:
        table = read_frame(path, _COLUMNS)
        actions = np.stack(table["actions"].to_list()).astype(np.int64)
        sub_scores = table[list(SUB_SCORES)].to_numpy(dtype=np.float64)
        tokens, kinds = (table[name].to_numpy(dtype=np.str_) for name in ("token", "kind"))
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path} is no part of scored rollouts ({error}): delete it to make it again"
        ) from error
    if actions.shape[1:] != (ANSWER_LENGTH,):
        raise DataError(
            f"a candidate has {ANSWER_LENGTH} action ids, got {actions.shape[1:]} in {path}; make them again"
        )
    return Rollouts(tokens, kinds, actions, sub_scores)


def read_rollouts(folder: Path) -> Rollouts:
    """All parts of a folder.

    Raises:
      DataError: there is none, or one is damaged.
    """
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise DataError(
            f"no scored rollouts in {folder} (part-*.parquet): give a folder that tools/train_scorer.py or "
            "reinforcement learning with rollout.save_scored=true wrote"
        )
    return joined([read_part(path) for path in paths])
