"""A walk over the opcodes of a pickle that refuses what only a crafted one has, before anything is built.

The unpickler believes what a pickle declares: a memo index of 2^27 allocates two gigabytes, a byte string of
2^40 bytes is allocated before it is read, and a tuple that holds itself twice, sixty levels deep, takes 2^60
steps to hash. None of this needs a forbidden name, so the allow-list of names (`safe_pickle`) cannot stop it.
The walk keeps, for every value on the unpickler's stack, one bit: may it be a key of a dict?
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Mapping

from drivefine_agent.errors import UnsafePickleError

MEMORY_PER_BYTE = 48
"""How many bytes of objects a byte of pickle may become. Files of NAVSIM become at most 14."""

_ALWAYS_ALLOWED_BYTES = 2**20

# What stands behind an opcode: a non-negative number of bytes, or
_LINE, _TWO_LINES, _LENGTH_1, _LENGTH_4, _LENGTH_8 = -1, -2, -3, -4, -5
_LENGTH_SIZE = {_LENGTH_1: 1, _LENGTH_4: 4, _LENGTH_8: 8}
_LONGEST_KEY_LINE = 20  # digits and sign of a 64-bit number

# What an opcode does to the stack.
(
    _NOTHING,
    _PUSH_KEY,  # a value that may be a key: text, bytes, a small number, None, a bool
    _PUSH_NUMBER,  # may be a key if it is short
    _PUSH_OTHER,
    _MEMOIZE,
    _PUT,
    _GET,
    _MARK,
    _TAKE_1,  # the topmost value becomes another one
    _TAKE_2,  # the two topmost values become one
    _TAKE_3,
    _COLLECT,  # everything above the mark becomes one value
    _COLLECT_KEYS,  # the same, and every one is hashed
    _COLLECT_PAIRS,  # the same, and every other one is hashed
    _SET_ITEM,
    _ADD,  # what is above the mark goes into the value below it
    _ADD_KEYS,
    _ADD_PAIRS,
    _POP,
    _POP_MARK,
    _FRAME,
    _STOP,
) = range(22)

_OTHER, _KEY = 0, 1

# Opcode -> (what stands behind it, what it does, bytes of memory). The others are refused: persistent
# identifiers, copyreg's extension codes, classes of Python 2, out-of-band buffers, keyword arguments.
_RULES_BY_OPCODE: Mapping[bytes, tuple[int, int, int]] = {
    pickle.PROTO: (1, _NOTHING, 0),
    pickle.FRAME: (8, _FRAME, 0),
    pickle.STOP: (0, _STOP, 0),
    pickle.NONE: (0, _PUSH_KEY, 8),
    pickle.NEWTRUE: (0, _PUSH_KEY, 8),
    pickle.NEWFALSE: (0, _PUSH_KEY, 8),
    pickle.BININT: (4, _PUSH_KEY, 40),
    pickle.BININT1: (1, _PUSH_KEY, 8),
    pickle.BININT2: (2, _PUSH_KEY, 40),
    pickle.INT: (_LINE, _PUSH_NUMBER, 40),
    pickle.LONG: (_LINE, _PUSH_NUMBER, 40),
    pickle.LONG1: (_LENGTH_1, _PUSH_NUMBER, 40),
    pickle.LONG4: (_LENGTH_4, _PUSH_NUMBER, 40),
    pickle.FLOAT: (_LINE, _PUSH_KEY, 32),
    pickle.BINFLOAT: (8, _PUSH_KEY, 32),
    pickle.STRING: (_LINE, _PUSH_KEY, 64),
    pickle.BINSTRING: (_LENGTH_4, _PUSH_KEY, 64),
    pickle.SHORT_BINSTRING: (_LENGTH_1, _PUSH_KEY, 64),
    pickle.UNICODE: (_LINE, _PUSH_KEY, 64),
    pickle.SHORT_BINUNICODE: (_LENGTH_1, _PUSH_KEY, 64),
    pickle.BINUNICODE: (_LENGTH_4, _PUSH_KEY, 64),
    pickle.BINUNICODE8: (_LENGTH_8, _PUSH_KEY, 64),
    pickle.SHORT_BINBYTES: (_LENGTH_1, _PUSH_KEY, 48),
    pickle.BINBYTES: (_LENGTH_4, _PUSH_KEY, 48),
    pickle.BINBYTES8: (_LENGTH_8, _PUSH_KEY, 48),
    pickle.BYTEARRAY8: (_LENGTH_8, _PUSH_OTHER, 64),
    pickle.EMPTY_LIST: (0, _PUSH_OTHER, 96),
    pickle.EMPTY_DICT: (0, _PUSH_OTHER, 240),
    pickle.EMPTY_SET: (0, _PUSH_OTHER, 240),
    pickle.EMPTY_TUPLE: (0, _PUSH_OTHER, 8),
    pickle.TUPLE1: (0, _TAKE_1, 64),
    pickle.TUPLE2: (0, _TAKE_2, 72),
    pickle.TUPLE3: (0, _TAKE_3, 80),
    pickle.TUPLE: (0, _COLLECT, 64),
    pickle.LIST: (0, _COLLECT, 96),
    pickle.DICT: (0, _COLLECT_PAIRS, 240),
    pickle.FROZENSET: (0, _COLLECT_KEYS, 240),
    pickle.APPEND: (0, _POP, 16),
    pickle.APPENDS: (0, _ADD, 16),
    pickle.SETITEM: (0, _SET_ITEM, 64),
    pickle.SETITEMS: (0, _ADD_PAIRS, 64),
    pickle.ADDITEMS: (0, _ADD_KEYS, 64),
    pickle.GLOBAL: (_TWO_LINES, _PUSH_OTHER, 8),
    pickle.STACK_GLOBAL: (0, _TAKE_2, 8),
    pickle.REDUCE: (0, _TAKE_2, 160),
    pickle.NEWOBJ: (0, _TAKE_2, 160),
    pickle.BUILD: (0, _POP, 64),
    pickle.MARK: (0, _MARK, 8),
    pickle.POP: (0, _POP, 0),
    pickle.POP_MARK: (0, _POP_MARK, 0),
    pickle.MEMOIZE: (0, _MEMOIZE, 16),
    pickle.BINPUT: (1, _PUT, 16),
    pickle.LONG_BINPUT: (4, _PUT, 16),
    pickle.PUT: (_LINE, _PUT, 16),
    pickle.BINGET: (1, _GET, 8),
    pickle.LONG_BINGET: (4, _GET, 8),
    pickle.GET: (_LINE, _GET, 8),
}

_RULES: list[tuple[int, int, int] | None] = [None] * 256
for _opcode, _rule in _RULES_BY_OPCODE.items():
    _RULES[_opcode[0]] = _rule


def check_opcodes(data: bytes) -> None:
    """Refuse a pickle that declares more than it has, takes forever to hash, or is of no pickler's making.

    Raises:
      UnsafePickleError: an opcode outside the allow-list; a key of a dict or member of a set that is neither
        text, bytes nor a number of at most 64 bits; far more objects than bytes; a memo index behind the end.
      pickle.UnpicklingError: it ends early, or is no pickle. `safe_pickle` adds the name of the file.
    """
    _Walk(data).run()


class _Walk:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._stack = bytearray()  # one kind per value
        self._marks: list[int] = []  # heights of the stack
        self._memo = bytearray()  # 1 + kind by index; 0: nothing there
        self._num_memoized = 0
        self._frame_end = 0

    def run(self) -> None:
        """The loop has the commonest instructions inline: it takes about as long as the unpickler itself."""
        data, stack, marks, memo = self._data, self._stack, self._marks, self._memo
        size = len(data)
        budget = MEMORY_PER_BYTE * size + _ALWAYS_ALLOWED_BYTES
        position = 0
        while position < size:
            code = data[position]
            rule = _RULES[code]
            if rule is None:
                raise _not_allowed(code, position)
            behind, effect, cost = rule
            budget -= cost
            start = end = position + 1
            if behind:
                end = start + behind if behind > 0 else self._end(start, behind)
                if end > size:
                    raise pickle.UnpicklingError(
                        f"a pickle must hold what it declares, got {size} bytes of at least {end}"
                    )
                if position < self._frame_end < end:
                    raise UnsafePickleError(
                        f"a value of a pickle may not reach over its frame, got {position}"
                    )
            position = end
            if effect == _PUSH_KEY:
                stack.append(_KEY)
            elif effect == _MEMOIZE and self._num_memoized == len(memo) and stack:
                memo.append(1 + stack[-1])
                self._num_memoized += 1
            elif effect == _GET:
                index = data[start] if behind == 1 else self._index(start, end, behind)
                if index >= len(memo) or memo[index] == 0:
                    raise pickle.UnpicklingError(
                        f"a pickle may only refer to what it has memoized, got index {index}"
                    )
                stack.append(memo[index] - 1)
            elif effect == _PUSH_OTHER:
                stack.append(_OTHER)
            elif effect == _TAKE_2 and len(stack) > (marks[-1] + 1 if marks else 1):
                stack.pop()
                stack[-1] = _OTHER
            elif effect == _MARK:
                marks.append(len(stack))
            elif effect == _STOP:
                self._floor(1)
                self._check_budget(budget)
                return
            elif effect != _NOTHING:
                self._check_budget(budget)
                self._apply(effect, start, end, behind)
        raise pickle.UnpicklingError(f"a pickle ends with a stop, got none in {size} bytes")

    def _check_budget(self, budget: int) -> None:
        if budget < 0:
            raise UnsafePickleError(
                f"a pickle may become {MEMORY_PER_BYTE} times its size in objects, got more from "
                f"{len(self._data)} bytes"
            )

    def _apply(self, effect: int, start: int, end: int, behind: int) -> None:
        stack = self._stack
        if effect == _MEMOIZE:
            self._put(self._num_memoized)
        elif effect == _PUT:
            self._put(self._index(start, end, behind))
        elif effect in _NUM_TAKEN:
            self._floor(_NUM_TAKEN[effect])
            del stack[-_NUM_TAKEN[effect] :]
            stack.append(_OTHER)
        elif effect == _POP:
            if self._marks and self._marks[-1] == len(stack):
                self._marks.pop()
            else:
                self._floor(1)
                stack.pop()
        elif effect == _SET_ITEM:
            self._floor(3)
            self._check_keys(stack[-2:-1])
            del stack[-2:]
        elif effect == _PUSH_NUMBER:
            longest = 8 + 1 if behind == _LENGTH_1 else _LONGEST_KEY_LINE + 1
            stack.append(_KEY if behind != _LENGTH_4 and end - start <= longest else _OTHER)
        elif effect == _FRAME:
            if start - 1 < self._frame_end:
                raise UnsafePickleError(
                    f"frames of a pickle must follow each other, got one inside at {start}"
                )
            self._frame_end = end + int.from_bytes(self._data[start:end], "little")
            if self._frame_end > len(self._data):
                raise pickle.UnpicklingError("a pickle must hold the frame it declares, got a longer one")
        else:
            self._take_marked(effect)

    def _take_marked(self, effect: int) -> None:
        if not self._marks:
            raise pickle.UnpicklingError("a pickle must set a mark before it uses one, got none")
        height = self._marks.pop()
        if effect in (_COLLECT_KEYS, _ADD_KEYS):
            self._check_keys(self._stack[height:])
        elif effect in (_COLLECT_PAIRS, _ADD_PAIRS):
            self._check_keys(self._stack[height::2])
        del self._stack[height:]
        if effect in (_COLLECT, _COLLECT_KEYS, _COLLECT_PAIRS):
            self._stack.append(_OTHER)
        elif effect != _POP_MARK:
            self._floor(1)

    def _check_keys(self, kinds: bytearray) -> None:
        if _OTHER in kinds:
            raise UnsafePickleError(
                "a key of a dict or a member of a set in a pickle must be text, bytes or a number of at most "
                "64 bits, got another object"
            )

    def _floor(self, count: int) -> None:
        """There must be so many values above the last mark."""
        found = len(self._stack) - (self._marks[-1] if self._marks else 0)
        if found < count:
            raise pickle.UnpicklingError(
                f"a pickle must push values before it uses them, got {found} where it uses {count}"
            )

    def _put(self, index: int) -> None:
        self._floor(1)
        memo = self._memo
        if index >= len(memo):
            if index > len(self._data):
                raise UnsafePickleError(
                    f"a pickle of {len(self._data)} bytes cannot memoize so many objects, got index {index}"
                )
            memo.extend(bytes(index + 1 - len(memo)))
        self._num_memoized += memo[index] == 0
        memo[index] = 1 + self._stack[-1]

    def _index(self, start: int, end: int, behind: int) -> int:
        """The memo index behind an opcode."""
        content = self._data[start:end]
        if behind != _LINE:
            return int.from_bytes(content, "little")
        if not content[:-1].isdigit() or len(content) > _LONGEST_KEY_LINE:
            raise UnsafePickleError(f"a memo index in a pickle must be a count, got {content!r:.40}")
        return int(content)

    def _end(self, start: int, behind: int) -> int:
        """Where what stands behind an opcode ends."""
        if behind in _LENGTH_SIZE:
            first = start + _LENGTH_SIZE[behind]
            return first + int.from_bytes(self._data[start:first], "little")
        for _ in range(2 if behind == _TWO_LINES else 1):
            start = self._data.find(b"\n", start) + 1
            if start == 0:
                raise pickle.UnpicklingError("a line of a pickle must have an end, got none")
        return start


_NUM_TAKEN = {_TAKE_1: 1, _TAKE_2: 2, _TAKE_3: 3}


def _not_allowed(code: int, position: int) -> Exception:
    names = [info.name for info in pickletools.opcodes if info.code == chr(code)]
    if not names:
        return pickle.UnpicklingError(f"byte {position} is no instruction of a pickle: {code:#04x}")
    return UnsafePickleError(
        f"only the instructions that write builtins and numpy arrays are read from a pickle, got {names[0]} "
        f"at byte {position}"
    )
