"""The pieces of a panel file's body: each is read, checked and, by who writes, written by itself."""

from __future__ import annotations

import hashlib
import io
import logging
import mmap
import os
import threading
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import count

from moe_core.kernels.cpu.arena import address_of, own_memory
from moe_core.kernels.cpu.mapped_pages import fetch
from moe_core.kernels.cpu.native import library
from moe_core.kernels.cpu.small_pages import move_to_huge_pages

logger = logging.getLogger(__name__)
# What a thread reads and checks at a time: whole huge pages.
PIECE_BYTES = 16 << 20


class Pieces:
    """A body on its way: each piece is read, into memory of the process or to where it is mapped, and checked by one of a
    few threads."""

    def __init__(
        self,
        memory: mmap.mmap,
        num_bytes: int,
        file: int | None = None,
        num_threads: int = 1,
        *,
        own_where_small: bool = False,
    ) -> None:
        """Begin; with a `file` to read from, else `memory` is mapped, and copied where its pages are small if so asked."""
        self._memory, self._num_bytes, self._own_where_small = memory, num_bytes, own_where_small
        self._sums: list[bytes] = [b""] * -(-num_bytes // PIECE_BYTES)
        # Its next is one call in C: no two threads get the same number.
        self._numbers = count()
        num_threads = max(1, min(num_threads, len(self._sums)))
        # The caller may close the file at once.
        sources = [None if file is None else io.FileIO(os.dup(file)) for _ in range(num_threads)]
        self._threads = [
            threading.Thread(target=self._work, args=(source,), name="panel-reader", daemon=True)
            for source in sources
        ]
        for thread in self._threads:
            thread.start()

    def digest(self) -> str:
        """Wait for all of them; what they are together. Not that of any body where one could not be read."""
        for thread in self._threads:
            thread.join()
        return hashlib.sha256(b"".join(self._sums)).hexdigest()

    def _work(self, source: io.FileIO | None) -> None:
        with source or nullcontext():
            while (number := next(self._numbers)) < len(self._sums):
                start = number * PIECE_BYTES
                size = min(PIECE_BYTES, self._num_bytes - start)
                try:
                    self._read(source, start, size)
                except OSError as error:
                    logger.warning("the panel file cannot be read: %s", error)
                    return
                self._sums[number] = checksum(address_of(self._memory) + start, size)

    def _read(self, source: io.FileIO | None, start: int, size: int) -> None:
        if source is None:
            fetch(self._memory, start, size)
            if self._own_where_small:
                move_to_huge_pages(self._memory, start, size)
            return
        piece, filled = memoryview(self._memory)[start : start + size], 0
        while filled < size:
            read = os.preadv(source.fileno(), [piece[filled:]], start + filled)
            if not read:
                raise OSError(f"it ends after {start + filled} bytes")
            filled += read


def checksum(address: int, num_bytes: int) -> bytes:
    """XXH64 of memory. It finds what was torn or has rotted; who can write the file can write a digest of any kind too."""
    native = library()
    assert native is not None, "there are no panels without the kernels"
    value: int = native.checksum(address, num_bytes)
    return value.to_bytes(8, "little")


def write_whole(file: int, data: memoryview, start: int) -> None:
    """Write all of it from there on. Raises OSError."""
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], start + written)


def write_joined(file: int, parts: Iterable[tuple[memoryview, int]]) -> None:
    """Write parts that follow each other with small gaps, zeros, in whole pieces: the page cache keeps what is
    written so in huge pages, where parts by themselves would begin within one. Raises OSError."""
    joined = memoryview(own_memory(PIECE_BYTES))
    begin = end = 0
    for data, start in parts:
        if start >= begin + PIECE_BYTES:
            write_whole(file, joined[: end - begin], begin)
            begin = end = start // PIECE_BYTES * PIECE_BYTES
        joined[end - begin : start - begin] = bytes(start - end)
        while len(data) > begin + PIECE_BYTES - start:
            room = begin + PIECE_BYTES - start
            joined[start - begin :] = data[:room]
            write_whole(file, joined, begin)
            data, start = data[room:], start + room
            begin = start
        joined[start - begin : start - begin + len(data)] = data
        end = start + len(data)
    write_whole(file, joined[: end - begin], begin)
