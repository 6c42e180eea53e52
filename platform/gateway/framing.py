"""How an HTTP/1.1 answer is framed: its head, and its body in chunks or of a known length."""

from __future__ import annotations

from dataclasses import dataclass

MAX_HEAD_BYTES = 64 << 10
MAX_CHUNK_BYTES = 64 << 20


class WireError(Exception):
    """What came is no answer."""


@dataclass(frozen=True, slots=True)
class Head:
    """The status and the headers of an answer, names in small letters."""

    status: int
    headers: dict[str, str]


class Body:
    """Takes the bytes of a body out of how it is framed: in chunks, or of a known length."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.is_complete = False
        self._left = 0
        self._is_chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        # The begin of a chunk, and how many bytes the whole of it takes as far as that is known.
        self._kept, self._needs = bytearray(), 0
        if not self._is_chunked:
            length = headers.get("content-length", "")
            if not length.isdigit():
                raise WireError("an answer has neither chunks nor a length")
            self._left = int(length)
            self.is_complete = not self._left

    def feed(self, data: bytes) -> bytes:
        """The part of the body that `data` completes.

        Raises:
            WireError: when the framing is broken.
        """
        return self._of_chunks(data) if self._is_chunked else self._of_length(data)

    def _of_length(self, data: bytes) -> bytes:
        part = data[: self._left]
        self._left -= len(part)
        self.is_complete = not self._left
        return part

    def _of_chunks(self, data: bytes) -> bytes:
        if self._kept:
            self._kept += data
            if len(self._kept) < self._needs:
                return b""
            data = bytes(self._kept)
            self._kept.clear()
        at, parts = 0, []
        while not self.is_complete:
            begin = data.find(b"\r\n", at) + 2
            if begin < 2:
                self._keep(data[at:], len(data) - at + 1)
                break
            size = _size(data[at : begin - 2])
            end = begin + size
            if len(data) < end + 2:
                self._keep(data[at:], end + 2 - at)
                break
            if data[end : end + 2] != b"\r\n":
                raise WireError("a chunk does not end where it should")
            self.is_complete = not size
            parts.append(data[begin:end])
            at = end + 2
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _keep(self, data: bytes, needs: int) -> None:
        if len(data) > MAX_CHUNK_BYTES:
            raise WireError("a chunk is too long")
        self._kept += data
        self._needs = needs


def _size(line: bytes) -> int:
    try:
        size = int(line.partition(b";")[0], 16)
    except ValueError:
        raise WireError(f"{line[:20]!r} is no size of a chunk") from None
    if not 0 <= size <= MAX_CHUNK_BYTES:
        raise WireError(f"a chunk of {size} bytes is too long")
    return size


def head_of(data: bytes) -> Head:
    """Read a status line and headers.

    Raises:
        WireError: for what is neither.
    """
    first, *lines = data.decode("latin-1").split("\r\n")
    version, _space, rest = first.partition(" ")
    status = rest[:3]
    if not version.startswith("HTTP/1.") or not status.isdigit():
        raise WireError(f"{first[:80]!r} is no status line")
    pairs = (line.partition(":") for line in lines)
    return Head(int(status), {name.strip().lower(): value.strip() for name, _colon, value in pairs})
