"""Questions in words about an image, as arrays to learn from.

A visit of a line of a QA set takes one of its question-answer pairs at random and drops the others, as LaViDa
does (model.md 3.5; 1.9, A35). The answer is its tokens, the end of the turn, then the end-of-text token up to
the next of a few lengths; all of these slots are masked and learned, so that the model learns where an answer
ends (model.md 2.6). Rows of equal length make one batch, so that no slot is padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drivefine_agent.data.recogdrive import ConversationFile
from drivefine_agent.model.text_tokenizer import END_OF_TEXT, END_OF_TURN, TextTokenizer
from drivefine_agent.prompt import PromptBuilder, pad_contexts
from drivefine_agent.training.augmentation import jitter_light
from drivefine_agent.training.config import AugmentationConfig
from drivefine_agent.training.tile_cache import ImageSet, Tiles
from drivefine_agent.training.visual_cache import VisualTokens


class TextBatch(NamedTuple):
    """B questions whose answers have the same number of slots."""

    tiles: Tensor | None
    """(B, T, S, S, 3) uint8; None with `visual`."""
    context_ids: Tensor
    """(B, C) token ids of image and question, right-padded."""
    context_lengths: Tensor | None
    """(B,), None where nothing is padded."""
    answer_ids: Tensor
    """(B, L) base token ids, none masked."""
    num_cut: int
    """Answers that were too long for the longest L and lost their end."""
    visual: Tensor | None = None
    """(B, V, D) visual tokens in place of the tiles."""

    def to(self, device: torch.device | str) -> TextBatch:
        """The batch on another device."""
        return TextBatch(
            None if self.tiles is None else self.tiles.to(device),
            self.context_ids.to(device),
            None if self.context_lengths is None else self.context_lengths.to(device),
            self.answer_ids.to(device),
            self.num_cut,
            None if self.visual is None else self.visual.to(device),
        )


@dataclass(frozen=True)
class Questions:
    """N lines of a QA set. Texts stay on disk; a batch reads and tokenizes its own."""

    file: ConversationFile
    images: ImageSet
    tiles: Tiles
    prompts: PromptBuilder
    answer_lengths: tuple[int, ...]
    """Numbers of slots an answer may have, rising."""
    visual: VisualTokens | None = field(default=None, repr=False)
    """Kept visual tokens, in place of the tiles."""

    def __len__(self) -> int:
        return len(self.file)

    def batches(
        self,
        rows: NDArray[np.int64],
        augmentation: AugmentationConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> list[TextBatch]:
        """The lines `rows`, one question each, in one batch per answer length, shortest first.

        Args:
          rows: (B,) positions in the set.
          augmentation: light only: a mirrored image would need another answer.
          generator: of the choice of questions and of the augmentation; None: always the first question.
        """
        tokenizer = self.prompts.text_tokenizer
        draws = torch.zeros(len(rows)) if generator is None else torch.rand(len(rows), generator=generator)
        contexts, answers, is_cut = [], [], []
        for row, draw in zip(rows, draws.tolist(), strict=True):
            turns = self.file[int(row)].turns
            turn = turns[int(draw * len(turns))]
            contexts.append(self.prompts.question_context(turn.question))
            ids, cut = encode_answer(tokenizer, turn.answer, self.answer_lengths)
            answers.append(ids)
            is_cut.append(cut)
        lengths = np.array([len(ids) for ids in answers])
        tiles = None if self.visual is not None else torch.from_numpy(self.tiles[rows])
        if tiles is not None and augmentation is not None and augmentation.light_jitter > 0:
            assert generator is not None
            tiles = jitter_light(tiles, augmentation.light_jitter, generator)
        pad_id = self.prompts.config.text_config.pad_token_id or 0
        batches = []
        for length in sorted(set(lengths.tolist())):
            chosen = np.flatnonzero(lengths == length)
            ids, context_lengths = pad_contexts([contexts[i] for i in chosen], pad_id)
            batches.append(
                TextBatch(
                    None if tiles is None else tiles[torch.from_numpy(chosen)],
                    torch.from_numpy(ids),
                    None if context_lengths is None else torch.from_numpy(context_lengths),
                    torch.from_numpy(np.stack([answers[i] for i in chosen])),
                    sum(is_cut[i] for i in chosen),
                    None if self.visual is None else self.visual[rows[chosen]],
                )
            )
        return batches


def encode_answer(
    tokenizer: TextTokenizer, answer: str, lengths: tuple[int, ...]
) -> tuple[NDArray[np.int64], bool]:
    """(L,) token ids of an answer, and whether it was cut.

    Args:
      tokenizer: of the base vocabulary.
      answer: text.
      lengths: numbers of slots to choose from, rising; the first that holds the answer and its end is taken.
        An answer too long for the last keeps its beginning and gets no end.
    """
    ids = [*tokenizer.encode(answer), tokenizer.id_of(END_OF_TURN)]
    if len(ids) > lengths[-1]:
        return np.array(ids[: lengths[-1]], dtype=np.int64), True
    length = next(length for length in lengths if length >= len(ids))
    padding = [tokenizer.id_of(END_OF_TEXT)] * (length - len(ids))
    return np.array(ids + padding, dtype=np.int64), False
