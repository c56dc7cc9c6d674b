"""The files of an engine's state: whole tensors by name, in safetensors; nothing is unpickled.

    model/*.safetensors                 weights, as `save_pretrained` writes them
    moments-00000.safetensors, ...      AdamW's state, `<parameter name>/<exp_avg, exp_avg_sq or step>`

Nothing depends on backend or number of processes. Tensors are read and written a few at a time, so that no
process needs room for the whole state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from drivefine_agent.errors import DataError
from drivefine_agent.model.weight_files import weight_files

CHUNK_BYTES = 4 * 2**30
"""Largest size of a file of moments, but for a single larger parameter."""

Shapes = Mapping[str, tuple[int, ...]]


def write_moments(
    folder: Path,
    shapes: Shapes,
    moments_of: Callable[[str], Mapping[str, Tensor]],
    is_writer: bool,
    chunk_bytes: int = CHUNK_BYTES,
) -> DataError | None:
    """Gathers and writes moments chunk by chunk; every process goes through all of them.

    Args:
      folder: exists, on the writer.
      shapes: of the trained parameters, in the same order on every process.
      moments_of: gathers one parameter's moments; all processes call it.
      is_writer: whether this process writes.
      chunk_bytes: see `CHUNK_BYTES`.

    Returns:
      What went wrong; returned, not raised, because the others still wait for this process.
    """
    failure: DataError | None = None
    for number, names in enumerate(_chunks(shapes, chunk_bytes)):
        tensors: dict[str, Tensor] = {}
        for name in names:
            moments = moments_of(name)
            if is_writer and failure is None:
                tensors |= {f"{name}/{key}": value.contiguous() for key, value in moments.items()}
        if is_writer and failure is None:
            try:
                save_file(tensors, folder / f"moments-{number:05d}.safetensors")
            except (OSError, SafetensorError) as error:
                failure = DataError(
                    f"cannot write the optimizer's state into {folder}: {error}; make room or see to the "
                    "folder"
                )
    return failure


def read_moments(
    folder: Path, shapes: Shapes, take: Callable[[str, dict[str, Tensor]], None]
) -> DataError | None:
    """Reads what `write_moments` wrote; checks names and shapes before the first is taken.

    Args:
      folder: of the checkpoint.
      shapes: of the trained parameters.
      take: is given each parameter's moments, none before the first step.

    Returns:
      What went wrong; returned, not raised, so that the processes can agree on it.
    """
    files = sorted(folder.glob("moments-*.safetensors"))
    if not files:
        return DataError(
            f"a checkpoint of this engine has moments-*.safetensors, there are none in {folder}: delete it "
            "to go on from an earlier one"
        )
    try:
        found: dict[str, dict[str, Path]] = {}
        for file, key, shape in _entries(files):
            name, _, moment = key.rpartition("/")
            found.setdefault(name, {})[moment] = file
            if moment != "step" and shape != shapes.get(name, shape):
                return _misfit(folder, f"{key} has shape {shape}, expected {shapes[name]}")
        if found and found.keys() != shapes.keys():
            return _misfit(
                folder, f"its parameters differ, such as {sorted(found.keys() ^ shapes.keys())[:5]}"
            )
        for name, places in found.items():
            moments = {}
            for moment, file in places.items():
                with safe_open(str(file), framework="pt") as tensors:
                    moments[moment] = tensors.get_tensor(f"{name}/{moment}")
            take(name, moments)
    except (OSError, SafetensorError) as error:
        return _misfit(folder, str(error))
    return None


def read_weights(folder: Path, shapes: Shapes, take: Callable[[str, Tensor], None]) -> DataError | None:
    """Reads the weights of a model folder; checks names and shapes before the first is taken.

    Args:
      folder: what `save_pretrained` wrote.
      shapes: of the whole model's state.
      take: is given each tensor.

    Returns:
      What went wrong; returned, not raised, so that the processes can agree on it.
    """
    try:
        files = weight_files(folder)
        entries = list(_entries(files))
        found = {name: shape for _, name, shape in entries}
        if found != dict(shapes):
            differing = sorted(n for n in found.keys() | shapes.keys() if found.get(n) != shapes.get(n))
            return _misfit(folder, f"names or shapes of its weights differ, such as {differing[:5]}")
        for file in files:
            with safe_open(str(file), framework="pt") as tensors:
                for name in tensors.keys():
                    take(name, tensors.get_tensor(name))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        return _misfit(folder, str(error))
    return None


def _entries(files: list[Path]) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    for file in files:
        with safe_open(str(file), framework="pt") as tensors:
            for key in tensors.keys():
                yield file, key, tuple(tensors.get_slice(key).get_shape())


def _chunks(shapes: Shapes, chunk_bytes: int) -> list[list[str]]:
    """Names in order, cut where a chunk's two float32 moments would exceed `chunk_bytes`; at least one."""
    chunks: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        own = 8
        for length in shape:
            own *= length
        if chunks[-1] and size + own > chunk_bytes:
            chunks.append([])
            size = 0
        chunks[-1].append(name)
        size += own
    return chunks


def _misfit(folder: Path, reason: str) -> DataError:
    return DataError(
        f"checkpoint {folder} is damaged or not of this model and configuration: {reason}. "
        "Resume with the configuration it was written with, or start in a new output_dir"
    )
