"""Tokens to text as they come, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from functools import cache


@cache
def byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable bytes stand for themselves, the others follow from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}


class StreamDecoder:
    """Turns token ids into text, one at a time; bytes of an unfinished character wait for the rest.

    The concatenated output, `finish` included, equals decoding all ids at once.
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def step(self, token_id: int) -> str:
        """The text that this token completes; empty when it completes none."""
        return self._decoder.decode(self._bytes_of(token_id))

    def finish(self) -> str:
        """What is left: the replacement character for an unfinished one."""
        return self._decoder.decode(b"", final=True)
