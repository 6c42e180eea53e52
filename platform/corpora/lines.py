"""Lines of a file from strangers: bounded, whatever its encoding and newlines, in constant memory."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from corpora.encodings import Encoding, encoding_of

MAX_LINE_BYTES = 1 << 20
CHUNK_BYTES = 1 << 18
EXCERPT_BYTES = 600
SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its newline; a line over the limit carries only its beginning."""

    number: int
    raw: bytes
    is_too_long: bool = False


def utf8_lines(
    path: Path, max_line_bytes: int = MAX_LINE_BYTES, named: str = ""
) -> tuple[Encoding, Iterator[Line]]:
    """Return the encoding of a file (`named`, when its uploader said so) and its lines as UTF-8.

    Rows that are not in that encoding stay as they are, to be refused.

    Raises Invalid when the encoding cannot be told.
    """
    with path.open("rb") as source:
        encoding = encoding_of(source.read(SAMPLE_BYTES), named)
    return encoding, split_lines(_as_utf8(path, encoding), max_line_bytes)


def _as_utf8(path: Path, encoding: Encoding) -> Iterator[bytes]:
    with path.open("rb") as source:
        source.seek(encoding.mark_bytes)
        decoder = None if encoding.name == "utf-8" else codecs.getincrementaldecoder(encoding.name)("replace")
        while chunk := source.read(CHUNK_BYTES):
            yield chunk if decoder is None else decoder.decode(chunk).encode("utf-8", "replace")
        if decoder is not None:
            yield decoder.decode(b"", True).encode("utf-8", "replace")


def split_lines(chunks: Iterable[bytes], max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Split at LF, CR LF and CR; what is over the limit is passed over, not kept."""
    number, kept, length, after_cr = 1, bytearray(), 0, False

    def finish() -> Line:
        too_long = length > max_line_bytes
        return Line(number, bytes(kept[:EXCERPT_BYTES] if too_long else kept), too_long)

    for chunk in chunks:
        if after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        after_cr = chunk.endswith(b"\r") if chunk else after_cr
        pieces = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for index, piece in enumerate(pieces):
            if index:
                yield finish()
                number, length = number + 1, 0
                kept.clear()
            length += len(piece)
            room = max_line_bytes - len(kept)
            if room > 0:
                kept += piece[:room]
    if length:
        yield finish()
