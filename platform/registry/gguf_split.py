"""Which part of a model a GGUF file is, by its own keys; for the web process, which loads nothing that reads tensors.

Parts say their number and how many there are; a file that was joined again says 0, whatever it is called. The keys stand
after the vocabulary, so all before them is walked, with bounds, and nothing of it is kept.
Source: llama.cpp, tools/gguf-split; https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (format).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO

NUMBER, COUNT = b"split.no", b"split.count"
MAGIC, VERSION = b"GGUF", 3
# As moe_core's reader has them: what is over them is refused there.
MAX_HEAD_BYTES, MAX_KEYS, MAX_TEXTS = 48 * 2**20, 4096, 2**20
STRING, ARRAY = 8, 9
WHOLE_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
BYTES = {kind: struct.calcsize(layout) for kind, layout in WHOLE_NUMBERS.items()} | {6: 4, 7: 1, 12: 8}


@dataclass(frozen=True, slots=True)
class Part:
    """Which of how many, from 1 on."""

    number: int
    count: int


class _Unreadable(Exception):
    """The head breaks a rule of the format or a bound."""


def part_of(file: IO[bytes]) -> Part | None:
    """Return which part a file is; None for a whole one, and for a head that cannot be read: its import says why.

    The file is rewound before and after.
    """
    file.seek(0)
    try:
        found = _split_keys(_Head(file))
    except _Unreadable:
        return None
    finally:
        file.seek(0)
    count = found.get(COUNT, 0)
    return Part(found.get(NUMBER, 0) + 1, count) if count > 1 else None


def _split_keys(head: _Head) -> dict[bytes, int]:
    """The keys of a part that a file has, with their whole numbers."""
    if head.take(4) != MAGIC or head.number("<I") != VERSION:
        raise _Unreadable
    head.number("<Q")  # of tensors
    found: dict[bytes, int] = {}
    for _ in range(head.number("<Q", MAX_KEYS)):
        key = head.take(head.number("<Q", MAX_HEAD_BYTES))
        kind = head.number("<I")
        if key in (NUMBER, COUNT) and kind in WHOLE_NUMBERS:
            found[key] = head.number(WHOLE_NUMBERS[kind])
        else:
            head.skip_value(kind)
        if len(found) == 2:
            break
    return found


class _Head:
    """Walks over the head of an open file; every step is checked."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left, self._texts_left = file, MAX_HEAD_BYTES, MAX_TEXTS

    def take(self, count: int) -> bytes:
        self._spend(count)
        piece = self._file.read(count)
        if len(piece) < count:
            raise _Unreadable
        return piece

    def number(self, layout: str, limit: int | None = None) -> int:
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        if limit is not None and value > limit:
            raise _Unreadable
        return value

    def skip_value(self, kind: int) -> None:
        if kind != ARRAY:
            self._skip(kind, 1)
            return
        inner = self.number("<I")
        self._skip(inner, self.number("<Q", MAX_HEAD_BYTES))

    def _skip(self, kind: int, count: int) -> None:
        """Go past some values of a kind that holds no others."""
        if kind in BYTES:
            self._pass(count * BYTES[kind])
            return
        if kind != STRING or count > self._texts_left:
            raise _Unreadable
        self._texts_left -= count
        for _ in range(count):
            self._pass(self.number("<Q", MAX_HEAD_BYTES))

    def _pass(self, count: int) -> None:
        # Past the end, the next read finds nothing.
        self._spend(count)
        self._file.seek(count, 1)

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise _Unreadable
