"""Tokenizer files that are not as they should be: one error that names the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivefine_agent.errors import DataError
from drivefine_agent.model.text_tokenizer import TINY_TOKENIZER_FILE, TextTokenizer


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[Any], object]], Path]:
    """The shipped tokenizer after a change of its JSON."""

    def write(change: Callable[[Any], object]) -> Path:
        content = json.loads(TINY_TOKENIZER_FILE.read_text())
        change(content)
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["model"]["vocab"].update({"a": 2**31}),
        lambda c: c["added_tokens"][0].update(id=2**31),
    ],
    ids=["vocabulary", "added token"],
)
def test_an_id_is_checked_before_the_library_makes_room_for_it(change: Any, changed: Any) -> None:
    """The library ends the process where half a gigabyte more is not there."""
    path = changed(change)
    with pytest.raises(DataError, match=rf"may go up to 1048576, got 2147483648: {path}"):
        TextTokenizer.from_file(path)


def test_a_panic_of_the_library_is_our_error(changed: Any) -> None:
    """A prefix longer than a merged token: the library then slices behind its end. No Exception, a panic."""
    path = changed(lambda c: c["model"].update(continuing_subword_prefix=".."))
    with pytest.raises(DataError, match=rf"not a text tokenizer .*{path}"):
        TextTokenizer.from_file(path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"model": 3}', '{"model": {"vocab": [["a", 0]]}}', "{"])
def test_other_json_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match=str(path)):
        TextTokenizer.from_file(path)


def test_the_file_does_not_choose_the_length_of_what_is_encoded(changed: Any) -> None:
    padding = {"strategy": {"Fixed": 1000}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "<|endoftext|>"}
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    path = changed(lambda c: c.update(padding=padding, truncation=truncation))
    tiny = TextTokenizer.tiny()
    assert TextTokenizer.from_file(path).encode("turn left") == tiny.encode("turn left")
    assert len(tiny.encode("turn left")) > 2
