"""Lossless, compact bytes of float64 arrays: a guess of each number from those before it, and the difference.

The difference is counted in representable numbers, so that what comes out is bit for bit what went in,
whatever the guess; a good guess only makes it small. Guesses use additions, products, quotients and square
roots, which IEEE 754 rounds alike on all machines, and no library functions. The bytes of the differences are
sorted by their significance, which makes long runs of zeros, and deflated.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivefine_agent.constants import EGO_WHEEL_BASE_M
from drivefine_agent.scoring.kernel_arrays import kernel_input
from drivefine_agent.scoring.types import FloatArray

_LEVEL = 6  # 9 takes four times as long for 2 % less
_STEP_S = 0.1
_MAX_RATIO = 1032  # of deflate
MAX_NUMBER = 1e9
"""Of metres, radians, seconds: above it, the kernels' grids would not fit into integers."""
_KNOT = 5  # of five samples of a track, four lie on the line between two annotations


class Guess(IntEnum):
    """How the numbers of an array (n, columns) are guessed, column by column."""

    NONE = 0
    SAME = 1
    """As the one before."""
    LINE = 2
    """On a line with the two before."""
    STATES = 3
    """(n, 11) ego states: the next one of a kinematic bicycle."""
    TRACKS = 4
    """(n, 3 K) poses of K tracks, of which every fifth is a knot and the others lie between knots; only those
    that exist are kept, the others are zeros."""


class Part(NamedTuple):
    """The shape of an array in a stream, and how it is guessed."""

    num_rows: int
    num_columns: int
    guess: Guess


def encode_floats(
    arrays: Sequence[FloatArray], parts: Sequence[Part], exists: NDArray[np.bool_] | None = None
) -> bytes:
    """The bytes of arrays, to be deflated; see `decode_floats`.

    Raises:
      ValueError: if an array does not have the shape of its part, or a pose of a track that does not exist is
        not zero.
    """
    for array, part in zip(arrays, parts, strict=True):
        if array.shape != (part.num_rows, part.num_columns):
            raise ValueError(f"expected an array of shape {part[:2]}, got {array.shape}")
    values = np.concatenate([np.zeros(0), *(np.ravel(array) for array in arrays)]).astype(np.float64)
    differences = np.zeros(len(values), dtype=np.uint64)
    table, there = _table(parts), _exists(parts, exists)
    if not _code(values.copy(), values.view(np.int64), differences, table, there, True):
        raise ValueError("poses of tracks must be zero where the tracks do not exist")
    return np.ascontiguousarray(differences.view(np.uint8).reshape(-1, 8).T).tobytes()


def decode_floats(
    data: NDArray[np.uint8], parts: Sequence[Part], exists: NDArray[np.bool_] | None = None
) -> list[FloatArray]:
    """The arrays in the bytes of `encode_floats`.

    Args:
      data: eight bytes for each number.
      parts: of the arrays, in order.
      exists: (n, K), if there is a part guessed as TRACKS.

    Raises:
      ValueError: if the parts do not have as many numbers.
    """
    table, there = _table(parts), _exists(parts, exists)
    num_values = int(table[:, 0] @ table[:, 1])
    if len(data) != 8 * num_values:
        raise ValueError(f"{num_values} numbers take {8 * num_values} bytes, got {len(data)}")
    values = np.zeros(len(data) // 8)
    _code(values, values.view(np.int64), _joined(kernel_input(data, np.uint8)), table, there, False)
    arrays, start = [], 0
    for part in parts:
        stop = start + part.num_rows * part.num_columns
        arrays.append(values[start:stop].reshape(part.num_rows, part.num_columns))
        start = stop
    return arrays


def deflate(data: bytes) -> bytes:
    """Compressed bytes."""
    return zlib.compress(data, _LEVEL)


def inflate(data: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The `size` bytes that were given to `deflate`.

    Raises:
      ValueError: if the data are damaged, or become another number of bytes; of more, no more are made.
    """
    decoder = zlib.decompressobj()
    try:
        inflated = decoder.decompress(data.data, size + 1)
    except zlib.error as error:
        raise ValueError(f"compressed data are damaged ({error})") from error
    if len(inflated) != size or not decoder.eof or decoder.unused_data:
        raise ValueError(f"compressed data must become {size} bytes, they become another number")
    return np.frombuffer(inflated, dtype=np.uint8)


def check_deflated(size: int, num_bytes: int) -> None:
    """Whether `num_bytes` can have become of `size` compressed ones, before room is made for them.

    Raises:
      ValueError: if not.
    """
    if num_bytes > _MAX_RATIO * size:
        raise ValueError(f"{size} compressed bytes cannot hold {num_bytes}")


def check_numbers(values: FloatArray, what: str, may_be_nan: bool = False) -> None:
    """Whether numbers (n, columns) are finite and no larger than MAX_NUMBER.

    Raises:
      ValueError: if not.
    """
    if not _are_within(values, MAX_NUMBER, may_be_nan):
        raise ValueError(f"{what} must be finite and at most {MAX_NUMBER:g}")


@njit(cache=True, nogil=True)
def _are_within(values, limit, may_be_nan):
    """Whether all numbers (n, columns) are at most `limit` in size."""
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            value = values[row, column]
            if not (abs(value) <= limit or (may_be_nan and np.isnan(value))):
                return False
    return True


def _table(parts: Sequence[Part]) -> NDArray[np.int64]:
    table = np.empty((len(parts), 3), dtype=np.int64)
    for row, (num_rows, num_columns, guess) in enumerate(parts):
        table[row] = num_rows, num_columns, guess
    return table


def _exists(parts: Sequence[Part], exists: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    if exists is None:
        assert all(part.guess != Guess.TRACKS for part in parts)
        exists = np.zeros((0, 0), dtype=bool)
    return kernel_input(exists, np.bool_)


@njit(cache=True, nogil=True)
def _joined(planes):
    """Numbers whose bytes are sorted by their significance."""
    size = len(planes) // 8
    joined = np.zeros(size, dtype=np.uint64)
    for byte in range(8):
        for i in range(size):
            joined[i] |= np.uint64(planes[byte * size + i]) << np.uint64(8 * byte)
    return joined


@njit(cache=True, nogil=True)
def _code(values, bits, differences, table, exists, is_encoding):
    """Turn values into differences, or differences into values; `bits` are those of the values.

    While encoding, `values` is a copy that the guesses read, and `bits` are those of the original.
    """
    start = 0
    for part in range(len(table)):
        num_rows, num_columns, kind = table[part]
        if kind == 4:
            is_good = _code_tracks(values, bits, differences, start, num_columns, exists, is_encoding)
            if not is_good:
                return False
        elif kind == 3:
            for row in range(num_rows):
                for k in range(11):
                    column = _STATE_ORDER[k]
                    guess = _next_state(values, start + row * 11, column, row)
                    _code_one(bits, differences, start + row * 11 + column, guess, is_encoding)
        else:
            for row in range(num_rows):
                for column in range(num_columns):
                    at = start + row * num_columns + column
                    guess = 0.0
                    if kind >= 1 and row >= 1:
                        guess = values[at - num_columns]
                    if kind == 2 and row >= 2:
                        guess = 2.0 * values[at - num_columns] - values[at - 2 * num_columns]
                    _code_one(bits, differences, at, guess, is_encoding)
        start += num_rows * num_columns
    return True


@njit(cache=True, nogil=True)
def _code_one(bits, differences, at, guess, is_encoding):
    """One number. Differences are unsigned, with the sign in the lowest bit."""
    if not math.isfinite(guess):
        guess = 0.0
    expected = _ordered(np.float64(guess).view(np.int64))
    if is_encoding:
        difference = _ordered(bits[at]) - expected
        differences[at] = np.uint64((difference << 1) ^ (difference >> 63))
    else:
        zigzag = differences[at]
        difference = np.int64(zigzag >> np.uint64(1)) ^ -np.int64(zigzag & np.uint64(1))
        bits[at] = _ordered(expected + difference)


@njit(cache=True, nogil=True)
def _ordered(bits):
    """Bits of a float64 as an integer that counts up with the number; its own inverse."""
    return bits if bits >= 0 else bits ^ np.int64(0x7FFFFFFFFFFFFFFF)


@njit(cache=True, nogil=True)
def _code_tracks(values, bits, differences, start, width, exists, is_encoding):
    """Poses (n, 3 K): for each track first the knots, guessed on a line, then what lies between them."""
    num_rows = len(exists)
    for track in range(exists.shape[1]):
        for field in range(3):
            column = start + 3 * track + field
            before, last = -1, -1
            for row in range(0, num_rows, _KNOT):
                if exists[row, track]:
                    guess = 0.0
                    if before >= 0:
                        guess = 2.0 * values[last] - values[before]
                    elif last >= 0:
                        guess = values[last]
                    elif track > 0:  # some object near by
                        guess = values[column - 3]
                    before, last = last, column + row * width
                    _code_one(bits, differences, last, guess, is_encoding)
            for row in range(num_rows):
                at = column + row * width
                if not exists[row, track]:
                    if is_encoding and bits[at] != 0:
                        return False
                    continue
                below = row // _KNOT
                low = column + below * _KNOT * width
                high = low + _KNOT * width
                if row == below * _KNOT:
                    continue
                guess = values[at - width]
                if (
                    exists[below * _KNOT, track]
                    and (below + 1) * _KNOT < num_rows
                    and exists[(below + 1) * _KNOT, track]
                ):
                    slope = (values[high] - values[low]) / (0.5 * (below + 1) - 0.5 * below)
                    guess = slope * (row * _STEP_S - 0.5 * below) + values[low]
                _code_one(bits, differences, at, guess, is_encoding)
    return True


# Columns of a state (geometry.indices.StateIndex) in an order in which each follows from those before it.
_STATE_ORDER = (5, 8, 3, 7, 9, 10, 4, 6, 0, 1, 2)


@njit(cache=True, nogil=True)
def _next_state(values, at, column, row):
    """Guess of a column of the state at `at` from the state before it and its columns guessed earlier."""
    if row == 0:
        return 0.0
    old = at - 11
    if column == 3:
        return values[old + 3] + values[at + 5] * _STEP_S
    if column == 7:
        return values[old + 7] + values[at + 8] * _STEP_S
    if column == 9:
        sine, cosine = _sine_cosine(values[at + 7])
        return values[at + 3] * (sine / cosine) / EGO_WHEEL_BASE_M
    if column == 10:
        return (values[at + 9] - values[old + 9]) / _STEP_S
    if column == 0:
        return values[old] + values[old + 3] * _sine_cosine(values[old + 2])[1] * _STEP_S
    if column == 1:
        return values[old + 1] + values[old + 3] * _sine_cosine(values[old + 2])[0] * _STEP_S
    if column == 2:
        sine, cosine = _sine_cosine(values[old + 7])
        return values[old + 2] + values[old + 3] * (sine / cosine) / EGO_WHEEL_BASE_M * _STEP_S
    return values[old + column]


# Factors between the terms of the series, from the highest power down to 1.
_COSINE_TERMS = np.array([-1.0 / (n * (n - 1)) for n in range(22, 0, -2)])
_SINE_TERMS = np.array([-1.0 / (n * (n + 1)) for n in range(22, 0, -2)])


@njit(cache=True, nogil=True)
def _sine_cosine(angle):
    """Taylor series about 0 in a fixed order: near enough within [-pi, pi], and the same on all machines."""
    sine, cosine = 0.0, 0.0
    square = angle * angle
    for n in range(len(_SINE_TERMS)):
        cosine = (1.0 + cosine) * (square * _COSINE_TERMS[n])
        sine = (1.0 + sine) * (square * _SINE_TERMS[n])
    return angle * (1.0 + sine), 1.0 + cosine
