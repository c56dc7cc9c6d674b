"""Files of named tensors: what they hold, without reading it; reading and writing them piece by piece.

Checkpoints of many gigabytes pass through in pieces of `PIECE_BYTES`. Read are safetensors files and, for old
checkpoints, PyTorch's `.bin` (through the reader that runs no code, memory-mapped); written is safetensors.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drivefine_agent.data.atomic import atomic_file
from drivefine_agent.errors import DataError
from drivefine_agent.model.weight_files import read_weight_map

PIECE_BYTES = 64 * 2**20
_HOLE_BYTES = 2**20
INDEX_NAME = "model.safetensors.index.json"
_FOLDER_FILES = (INDEX_NAME, "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that a file is to hold."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


# --------------------------------------------------------------------------------------------- reading


def list_tensors(source: Path) -> list[StoredTensor]:
    """Every tensor of a checkpoint, in the order of files and names; only headers are read.

    Args:
      source: a folder with `model.safetensors` or its shards and index, or the same as `pytorch_model.bin`;
        or one such file.

    Raises:
      DataError: there is no checkpoint, a shard is missing or damaged, index and shards disagree, or a name
        occurs twice. All that is wrong is named.
    """
    files, expected = _files(source)
    stored = [tensor for file in files for tensor in _list_file(file)]
    problems = []
    seen: dict[str, StoredTensor] = {}
    for tensor in stored:
        if tensor.name in seen:
            problems.append(f"{tensor.name} is in {seen[tensor.name].file} and again in {tensor.file}")
        seen[tensor.name] = tensor
        if expected is not None and expected.get(tensor.name) != tensor.file.name:
            problems.append(f"{tensor.name} is in {tensor.file}, but the index does not say so")
    for name in sorted(set(expected or {}) - set(seen)):
        assert expected is not None
        problems.append(f"{name} should be in {source / expected[name]} by the index, but is not")
    if problems:
        raise DataError(f"the checkpoint {source} is damaged, fetch it again:\n  " + "\n  ".join(problems))
    return stored


def read_pieces(tensor: StoredTensor, piece_bytes: int = PIECE_BYTES) -> Iterator[Tensor]:
    """Consecutive rows of a tensor, in pieces; a tensor without rows comes as it is.

    The file is mapped anew for each piece, so that what was read before leaves the memory.
    """
    if len(tensor.shape) == 0:
        with _Opened(tensor.file) as opened:
            yield opened.whole(tensor.name)
        return
    row_bytes = tensor.dtype.itemsize * torch.Size(tensor.shape[1:]).numel()
    step = max(1, piece_bytes // max(1, row_bytes))
    for start in range(0, tensor.shape[0], step):
        with _Opened(tensor.file) as opened:
            yield opened.rows(tensor.name, start, min(start + step, tensor.shape[0]))


class _Opened:
    """One open tensor file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._tensors: Any = None

    def __enter__(self) -> _Opened:
        try:
            if self._file.suffix == ".safetensors":
                self._tensors = safe_open(str(self._file), framework="pt").__enter__()
            else:
                self._tensors = _load_bin(self._file, self._file.stat().st_mtime_ns)
        except DataError:
            raise
        except (OSError, SafetensorError, *_DAMAGE) as error:
            raise DataError(
                f"cannot read the tensors in {self._file}: {error}; fetch or write it again"
            ) from error
        if self._file.suffix != ".safetensors" and not _is_state(self._tensors):
            raise DataError(
                f"{self._file} must hold tensors by name and nothing else: is it a training state?"
            )
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self._tensors, "__exit__"):
            self._tensors.__exit__(None, None, None)
        self._tensors = None

    def list(self) -> list[StoredTensor]:
        if isinstance(self._tensors, dict):
            return [StoredTensor(n, tuple(t.shape), t.dtype, self._file) for n, t in self._tensors.items()]
        listed = []
        for name in self._tensors.keys():
            header = self._tensors.get_slice(name)
            kind = header.get_dtype()
            if kind not in _DTYPES:
                raise DataError(
                    f"{name} in {self._file} has type {kind}: only {', '.join(_DTYPES)} are known; export "
                    "it again as one of them"
                )
            listed.append(StoredTensor(name, tuple(header.get_shape()), _DTYPES[kind], self._file))
        return listed

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        if isinstance(self._tensors, dict):
            return self._tensors[name][start:stop]
        return self._tensors.get_slice(name)[start:stop]

    def whole(self, name: str) -> Tensor:
        return self._tensors[name] if isinstance(self._tensors, dict) else self._tensors.get_tensor(name)


def _is_state(loaded: Any) -> bool:
    """Whether what a .bin file holds is tensors by name."""
    return isinstance(loaded, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in loaded.items()
    )


# What PyTorch raises on a damaged .bin.
_DAMAGE = (
    *(RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, OverflowError, MemoryError, zipfile.BadZipFile),
)


@functools.lru_cache(maxsize=1)  # its directory takes long to read; the tensors stay on the disk
def _load_bin(file: Path, modified_ns: int) -> Any:
    size = file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise DataError(
                    f"PyTorch stores tensors uncompressed, {entry.filename!r} is not: {file}; fetch it again"
                )
    tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    for name, tensor in tensors.items() if isinstance(tensors, dict) else ():
        if isinstance(tensor, Tensor) and tensor.numel() * tensor.element_size() > size:
            raise DataError(
                f"a tensor must not be larger than its file of {size} bytes, {name!r:.80} has shape "
                f"{tuple(tensor.shape)}: {file}; fetch it again"
            )
    return tensors


def _list_file(file: Path) -> list[StoredTensor]:
    with _Opened(file) as opened:
        return opened.list()


def _files(source: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files of a checkpoint, and which of them holds what if there is an index."""
    if source.is_file():
        if source.suffix not in (".safetensors", ".bin"):
            raise DataError(
                f"tensors are read from .safetensors or .bin files, got {source}: choose such a file, or "
                "their folder"
            )
        return [source], None
    found = next((source / name for name in _FOLDER_FILES if (source / name).is_file()), None)
    if found is None:
        raise DataError(
            f"no checkpoint at {source}: it must have one of {', '.join(_FOLDER_FILES)}; correct the path"
        )
    if found.suffix != ".json":
        return [found], None
    weight_map = read_weight_map(found)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not os.path.isfile(source / shard)]  # False too for long names
    if missing:
        names = ", ".join(shard[:100] for shard in missing[:5])
        raise DataError(
            f"all {len(shards)} shards that {found} names must lie beside it, got {len(missing)} missing in "
            f"{source}: {names}; fetch them again"
        )
    return [source / shard for shard in shards], weight_map


# --------------------------------------------------------------------------------------------- writing


def plan_shards(tensors: Sequence[PlannedTensor], max_bytes: int) -> dict[str, list[PlannedTensor]]:
    """Tensors by file name, in order; a tensor larger than a shard gets its own."""
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.num_bytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": s for i, s in enumerate(shards)}


def index_text(shards: dict[str, list[PlannedTensor]]) -> str:
    """Content of `model.safetensors.index.json`, as transformers writes it."""
    weight_map = {tensor.name: shard for shard, tensors in shards.items() for tensor in tensors}
    total = sum(tensor.num_bytes for tensors in shards.values() for tensor in tensors)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1) + "\n"


def write_tensors(
    file: Path,
    tensors: Sequence[PlannedTensor],
    pieces_of: Callable[[str], Iterator[Tensor]],
    on_written: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Writes a safetensors file in pieces, under another name until it is complete and on the disk.

    Stretches of zeros become holes, which take no room on file systems that know them.

    Args:
      file: where to.
      tensors: what it will hold.
      pieces_of: from a name to the tensor's consecutive pieces, in its type.
      on_written: told the bytes of each piece.

    Raises:
      DataError: the disk is full or cannot be written.
    """
    with atomic_file(file) as stream:
        stream.write(_header(tensors))
        for tensor in tensors:
            end = stream.tell() + tensor.num_bytes
            for piece in pieces_of(tensor.name):
                if piece.dtype != tensor.dtype:
                    raise TypeError(f"{tensor.name} must be {tensor.dtype}, got {piece.dtype}")
                _write_with_holes(stream, piece)
                on_written(piece.numel() * piece.element_size())
            if stream.tell() != end:
                raise ValueError(
                    f"{tensor.name} must have {tensor.num_bytes} bytes: {stream.tell() - end:+d}"
                )
        stream.truncate(stream.tell())


def is_written(file: Path, tensors: Sequence[PlannedTensor]) -> bool:
    """Whether a file has the header and the size that `write_tensors` gives it."""
    header = _header(tensors)
    size = len(header) + sum(tensor.num_bytes for tensor in tensors)
    if not file.is_file() or file.stat().st_size != size:
        return False
    with file.open("rb") as stream:
        return stream.read(len(header)) == header


def _header(tensors: Sequence[PlannedTensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_with_holes(stream: Any, piece: Tensor) -> None:
    content = piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    for start in range(0, len(content), _HOLE_BYTES):
        block = content[start : start + _HOLE_BYTES]
        if block[0] == 0 and not block.any():
            stream.seek(len(block), os.SEEK_CUR)
        else:
            stream.write(block)
