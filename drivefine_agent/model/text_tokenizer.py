"""Prompt text <-> token ids: one class over any `tokenizer.json`, LLaDA's or the small one shipped here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from drivefine_agent.data.json_text import parse_json, read_text
from drivefine_agent.errors import DataError

if TYPE_CHECKING:
    from drivefine_agent.model.config import DriveFineConfig


TINY_TOKENIZER_FILE = Path(__file__).with_name("tiny_tokenizer.json")
TOKENIZER_FILE_NAME = "tokenizer.json"

START_OF_TEXT = "<|startoftext|>"
END_OF_TEXT = "<|endoftext|>"
MASK = "<|mdm_mask|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
END_OF_TURN = "<|eot_id|>"
SPECIAL_TOKENS = (START_OF_TEXT, END_OF_TEXT, MASK, START_HEADER, END_HEADER, END_OF_TURN)
"""Names as in LLaDA's vocabulary; in the small tokenizer these are ids 0 to 5."""

LLADA_VOCABULARY_ROWS = 126464
LLADA_SPECIAL_IDS = {
    START_OF_TEXT: 126080,
    END_OF_TEXT: 126081,
    MASK: 126336,
    START_HEADER: 126346,
    END_HEADER: 126347,
    END_OF_TURN: 126348,
}
"""Of LLaDA's tokenizer (ids 0 to 126348; the rows up to 126463 are unused)."""

_ALWAYS_ALLOWED_IDS = 2**20

NUMBER_TOKENS = tuple("0123456789.-")
"""What numbers are written with: the action rows of a pretrained vocabulary start around these."""


class TextTokenizer:
    """Encodes prompt text; special tokens are written in the text by name."""

    def __init__(self, tokenizer: Tokenizer, source: str = "memory") -> None:
        missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
        if missing:
            raise DataError(
                f"a text tokenizer must know {', '.join(SPECIAL_TOKENS)}; {source} lacks "
                f"{', '.join(missing)}: choose the checkpoint's own"
            )
        self._tokenizer = tokenizer

    @classmethod
    def from_file(cls, path: str | Path) -> TextTokenizer:
        """Reads a `tokenizer.json`, or the one in a checkpoint folder.

        Raises:
          DataError: if the file is missing, damaged, or lacks the special tokens.
        """
        path = Path(path)
        file = path / TOKENIZER_FILE_NAME if path.is_dir() else path
        if not file.is_file():
            raise DataError(f"no text tokenizer at {file}: point to a checkpoint folder or a tokenizer.json")
        text = read_text(file)
        _check_ids(parse_json(text, str(file)), len(text), file)
        try:
            tokenizer = Tokenizer.from_str(text)
        except BaseException as error:  # the library raises nothing narrower, and its panics are no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise DataError(f"not a text tokenizer ({error!s:.200}): {file}; fetch it again") from error
        tokenizer.no_padding()  # the length of what is encoded is not the file's to choose
        tokenizer.no_truncation()
        return cls(tokenizer, source=str(file))

    @classmethod
    def tiny(cls) -> TextTokenizer:
        """The 512-token byte-level BPE that ships with the package."""
        return cls.from_file(TINY_TOKENIZER_FILE)

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json`; into the folder if `path` is one."""
        path = Path(path)
        self._tokenizer.save(str(path / TOKENIZER_FILE_NAME if path.is_dir() else path))

    def as_json(self) -> str:
        """All of it, as `save` writes it."""
        return str(self._tokenizer.to_str())

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token ids; nothing is added at either end."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids, special tokens by name."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def id_of(self, token: str) -> int:
        """Id of one token by its name.

        Raises:
          KeyError: if it is not in the vocabulary.
        """
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise KeyError(f"a token must be in the vocabulary, got {token!r}")
        return int(token_id)


def _check_ids(content: Any, length: int, file: Path) -> None:
    """The library makes a list as long as the largest id, so there may be no more than a file has room for.

    Raises:
      DataError: there is a larger one, also above `_ALWAYS_ALLOWED_IDS`.
    """
    content = content if isinstance(content, dict) else {}
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    largest = max((number for number in ids if isinstance(number, int)), default=0)
    most = max(length, _ALWAYS_ALLOWED_IDS)
    if largest > most:
        raise DataError(
            f"the ids of a text tokenizer with {length} letters may go up to {most}, got {largest}: {file}; "
            "fetch it again"
        )


def check_tokenizer(tokenizer: TextTokenizer, config: DriveFineConfig) -> None:
    """Whether a tokenizer is the one that a pretrained vocabulary was trained with, as far as ids can tell.

    Raises:
      DataError: a special token has another id than the model's rows (all of LLaDA's, where the vocabulary
        has its size), or there are more tokens than rows.
    """
    text = config.text_config
    expected = {START_OF_TEXT: text.bos_token_id, END_OF_TEXT: text.eos_token_id, MASK: config.mask_token_id}
    if config.base_vocab_size == LLADA_VOCABULARY_ROWS:
        expected |= LLADA_SPECIAL_IDS
    wrong = [
        f"{token} is {tokenizer.id_of(token)}, not {token_id}"
        for token, token_id in expected.items()
        if token_id is not None and tokenizer.id_of(token) != token_id
    ]
    if len(tokenizer) > config.base_vocab_size:
        wrong.append(f"it has {len(tokenizer)} tokens, the model {config.base_vocab_size} rows")
    if wrong:
        raise DataError(
            f"the tokenizer of a checkpoint must belong to its model: {'; '.join(wrong)}; take the "
            "checkpoint's own"
        )


def number_ids(tokenizer: TextTokenizer) -> list[int]:
    """Ids of digits, dot and minus.

    Raises:
      DataError: one of them is not a token of its own.
    """
    encoded = {character: tokenizer.encode(character) for character in NUMBER_TOKENS}
    split = [character for character, ids in encoded.items() if len(ids) != 1]
    if split:
        raise DataError(
            f"digits, dot and minus must be single tokens, but {' '.join(split)} are not in this "
            "tokenizer: take the one of a DriveFine checkpoint"
        )
    return [ids[0] for ids in encoded.values()]


def train_text_tokenizer(
    texts: Iterable[str], vocab_size: int = 512, whole_tokens: Iterable[str] = ()
) -> TextTokenizer:
    """A byte-level BPE tokenizer fitted to texts: any string can be encoded.

    Args:
      texts: what it will be used on.
      vocab_size: special and whole tokens and all 256 bytes included.
      whole_tokens: strings that become one token each, after the special ones.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *whole_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(tokenizer)
