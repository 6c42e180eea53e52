"""Memory for weights that are read from end to end: whole huge pages, shared by small matrices.

A matrix of one megabyte by itself would lie in pages of four kilobytes, whose addresses are looked up 500 times as often.
"""

from __future__ import annotations

import ctypes
import mmap
from threading import Lock

ALIGNMENT = 64
# What is mapped at a time; pages that nobody writes to take no memory.
ARENA_BYTES = 64 << 20
HUGE_PAGE = 2 << 20


class Arena:
    """Hands out pieces of large mappings; a mapping goes when the last of its pieces does."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._used = mmap.PAGESIZE

    def reserve(self, num_bytes: int) -> tuple[mmap.mmap, int]:
        """A mapping to hold on to, and the address of `num_bytes` in it, at the start of a cache line."""
        with self._lock:
            if self._used + num_bytes > len(self._memory):
                self._memory, self._used = own_memory(max(ARENA_BYTES, num_bytes + HUGE_PAGE)), 0
            address = address_of(self._memory) + self._used
            self._used += -(-num_bytes // ALIGNMENT) * ALIGNMENT
            return self._memory, address


def own_memory(num_bytes: int, *, huge: bool = True) -> mmap.mmap:
    """Zeros of this process alone, on a page's border; pages come when they are first written.

    In huge pages there is less to look up for what is read from end to end: a third of the time of a decoding product.
    """
    # Private: pages of a shared mapping, Python's own choice, are never huge unless the machine's owner says so.
    if hasattr(mmap, "MAP_PRIVATE"):
        memory = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        memory = mmap.mmap(-1, max(num_bytes, 1))
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def address_of(memory: mmap.mmap) -> int:
    """Where a writable mapping begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


ARENA = Arena()
