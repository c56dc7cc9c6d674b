"""What a model learned from: a card beside its weights, `provenance.json`.

    data            the scenes of the last stage of training, a `TrainingData`
    parent          the model it started from, with the `training_data` of its own card; null: none. A learned
                    scorer that a model was reinforced by has its record there too: `scorer`

and whatever else the writing script wants to keep. The records of all stages follow from the two, so a stage
can neither hide nor forget what an earlier one has seen.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drivefine_agent.data.atomic import write_bytes
from drivefine_agent.data.json_text import read_json_object
from drivefine_agent.errors import DataError

LOGGER = logging.getLogger(__name__)

CARD = "provenance.json"

# Sizes that published results are based on. Sources: NAVSIM's navtrain.yaml, and design notes, model.md 1.7.
_KNOWN_SIZES = {
    103_288: "as many as all of navtrain, 1,192 logs",
    85_109: "as many as navtrain has in NAVSIM's train_logs, 978 logs: the set of ReCogDrive's trajectories",
}


@dataclass(frozen=True)
class TrainingData:
    """The scenes that one stage of training learned from."""

    stage: str
    """Such as `sft`, `grpo`, `hybrid`, `diffusion`, `scorer`, `ego_status_mlp` or `navsim_run_training`."""
    split: str
    num_tokens: int
    """Scenes used."""
    num_split_tokens: int
    """Scenes that the split lists; those that were found, where it lists none."""
    tokens_sha256: str
    """Of the sorted tokens, joined by line breaks."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Why some of the split's scenes were not used, and how many."""
    test_data: Mapping[str, str] = field(default_factory=dict)
    """Test split -> how much of it is among the scenes; empty, as it should be, where none was found."""
    checked_against: tuple[str, ...] = ()
    """Test splits whose tokens and logs were compared; without their files only names could be."""


def training_data(
    stage: str,
    split: str,
    tokens: Collection[str],
    num_split_tokens: int,
    left_out: Mapping[str, int],
    test_data: Mapping[str, str],
    checked_against: Collection[str],
) -> TrainingData:
    """The record of a stage; reasons in `left_out` that left out nothing are dropped."""
    return TrainingData(
        stage=stage,
        split=split,
        num_tokens=len(tokens),
        num_split_tokens=num_split_tokens,
        tokens_sha256=hashlib.sha256("\n".join(sorted(tokens)).encode()).hexdigest(),
        left_out={reason: count for reason, count in left_out.items() if count},
        test_data=dict(test_data),
        checked_against=tuple(sorted(checked_against)),
    )


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Writes a card beside a model's weights.

    Raises:
      DataError: the place cannot be written.
    """
    write_bytes(folder / CARD, (json.dumps(card, indent=1) + "\n").encode())


def read_model_card(folder: Path) -> dict[str, Any] | None:
    """The card of a model; None where it has none, as those from elsewhere.

    Args:
      folder: of the model, or of a run that holds `model/`.

    Raises:
      DataError: it is damaged.
    """
    file = (folder / "model" if (folder / "model" / "config.json").is_file() else folder) / CARD
    if not file.is_file():
        return None
    card = read_json_object(file)
    if not _is_stage(card) or not _is_parent(card.get("parent")):
        raise DataError(
            f"a model's card is a JSON object with 'data' and 'parent', records of the stages of training, "
            f"got something else: {file}; copy it again from where the model was trained"
        )
    return card


def _is_stage(card: dict[str, Any]) -> bool:
    return isinstance(card.get("data"), dict) and _is_record(card["data"])


def _is_record(record: Any) -> bool:
    """Whether it is what `as_record` makes, as far as it is read."""
    return record is None or (
        isinstance(record, dict)
        and isinstance(record.get("test_data", {}), dict)
        and all(
            isinstance(record.get(key, 0), int) for key in ("num_tokens", "num_scenes", "num_split_tokens")
        )
    )


def _is_parent(parent: Any) -> bool:
    if parent is None:
        return True
    if not isinstance(parent, dict):
        return False
    records = parent.get("training_data")
    is_list = records is None or (isinstance(records, list) and all(map(_is_record, records)))
    return is_list and _is_parent(parent.get("scorer"))


def parent_record(folder: Path) -> dict[str, Any]:
    """The model that a run starts from: where it is and what it learned from (None: not recorded).

    Raises:
      DataError: its card is damaged.
    """
    card = read_model_card(folder)
    return {"path": str(folder), "training_data": None if card is None else all_training_data(card)}


def all_training_data(card: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """Records of all stages, the first one first; None stands for a beginning that is not recorded.

    What a learned scorer was trained on counts for the model that it reinforced.
    """
    parent = card.get("parent")
    if parent is None:
        return [dict(card["data"])]
    records = with_scorer(parent.get("training_data"), parent.get("scorer"))
    return [*records, dict(card["data"])]


def with_scorer(
    records: Sequence[dict[str, Any] | None] | None, scorer: Mapping[str, Any] | None
) -> list[dict[str, Any] | None]:
    """The records of a model and those of a learned scorer's stages that are not among them.

    Args:
      records: of all stages of the model; None: not recorded.
      scorer: `parent_record` of the scorer's folder; None: there is no scorer.
    """
    found: list[dict[str, Any] | None] = [None] if records is None else list(records)
    if scorer is None:
        return found
    own = scorer.get("training_data")
    return found + [record for record in ([None] if own is None else own) if record not in found]


def seen_test_splits(records: Collection[Mapping[str, Any] | None]) -> list[str]:
    """Names of the test splits that any stage has seen, sorted."""
    return sorted({name for record in records if record is not None for name in record.get("test_data", {})})


def describe_size(num_tokens: int) -> str:
    """`103,288 tokens (as many as all of navtrain, ...)`."""
    known = _KNOWN_SIZES.get(num_tokens)
    return f"{num_tokens:,} tokens" + (f" ({known})" if known else "")


def describe(records: Collection[Mapping[str, Any] | None] | None) -> str:
    """One line for people: what a model learned from, stage by stage, and whether test data were among it."""
    if records is None:
        return f"not recorded: the model has no {CARD}"
    parts = [
        "a model without a card"
        if record is None
        else f"{record.get('stage', '?')} {record.get('split', '?')}: {_describe_count(record)}"
        for record in records
    ]
    seen = seen_test_splits(records)
    return "; ".join(parts) + (f"; TRAINED ON TEST DATA: {', '.join(seen)}" if seen else "")


def _describe_count(record: Mapping[str, Any]) -> str:
    count = record.get("num_tokens", record.get("num_scenes"))  # cards before there were TrainingData
    if count is None:
        return "unknown number of tokens"
    total = record.get("num_split_tokens", count)
    return describe_size(count) + ("" if total == count else f" of {total:,}")


def warn_of_test_data(folder: Path) -> None:
    """Logs a warning if a model about to be used for planning has learned from test data.

    Raises:
      DataError: its card is damaged.
    """
    card = read_model_card(folder)
    seen = [] if card is None else seen_test_splits(all_training_data(card))
    if seen:
        LOGGER.warning(
            "the model in %s was TRAINED ON TEST DATA (%s): its scores there say nothing about driving, and "
            "NAVSIM's rules forbid submitting it",
            folder,
            ", ".join(seen),
        )


def as_record(data: TrainingData) -> dict[str, Any]:
    """JSON values."""
    return {**asdict(data), "checked_against": list(data.checked_against)}
