"""Tokens to text as they come, never half a character."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

SPACE = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


@cache
def byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable bytes stand for themselves, the others follow from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a vocabulary spells bytes: byte by byte in a printable alphabet, or as text with marks for spaces."""

    is_byte_level: bool
    has_byte_tokens: bool
    # Decoding leaves out the space before the text.
    skips_space: bool

    @classmethod
    def of(cls, tokenizer: dict[str, Any]) -> Self:
        """What the decoder of a checked tokenizer.json says."""
        decoder = tokenizer.get("decoder") or {}
        parts = [decoder, *(decoder.get("decoders") or [])]
        kinds = {part.get("type") for part in parts}
        skips = any(
            (part.get("type") == "Strip" and part.get("content") == " " and part.get("start"))
            or (part.get("type") == "Metaspace" and part.get("prepend_scheme") != "never")
            for part in parts
        )
        spaced = bool(kinds & {"Replace", "Metaspace", "ByteFallback"})
        return cls("ByteLevel" in kinds or not spaced, "ByteFallback" in kinds, skips)

    def bytes_of(self, token: str) -> bytes:
        """The bytes that a token of the vocabulary stands for."""
        if self.is_byte_level:
            table = byte_of_character()
            return bytes(table[character] for character in token)
        byte = _BYTE_TOKEN.match(token) if self.has_byte_tokens else None
        return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()


class StreamDecoder:
    """Turns token ids into text, one at a time; bytes of an unfinished character wait for the rest.

    The concatenated output, `finish` included, equals decoding all ids at once.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], *, skips_space: bool = False) -> None:
        self._bytes_of = bytes_of
        # The space that SentencePiece puts before a text is none of it.
        self._skips_space = skips_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def step(self, token_id: int) -> str:
        """The text that this token completes; empty when it completes none."""
        piece = self._bytes_of(token_id)
        if piece and self._skips_space:
            piece, self._skips_space = piece.removeprefix(b" "), False
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """What is left: the replacement character for an unfinished one."""
        return self._decoder.decode(b"", final=True)
