"""Where panels lie: in memory of the process alone, or in a file that is mapped and shared with other processes."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

PAGE_BYTES = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Place:
    """Memory for one stack of panels, on a page's border; `memory` keeps it alive, and its length is what was asked for:
    a mapping of the process's own, or a view of a file's."""

    memory: Any
    address: int
    # Whether it holds the panels already.
    is_filled: bool


class Shelf(Protocol):
    """Gives places in the order in which a model asks for them, which is the same each time."""

    def place(self, what: str, num_bytes: int) -> Place | None:
        """A place for what is described; None where the process's own memory has to do."""
        ...


_shelf: ContextVar[Shelf | None] = ContextVar("shelf", default=None)


@contextmanager
def on_shelf(shelf: Shelf) -> Iterator[None]:
    """Panels that are made in this block lie where `shelf` says."""
    token = _shelf.set(shelf)
    try:
        yield
    finally:
        _shelf.reset(token)


def place_for(what: str, num_bytes: int) -> Place:
    """A place for panels: on the shelf of the block that runs, else in anonymous memory."""
    shelf = _shelf.get()
    found = None if shelf is None else shelf.place(what, num_bytes)
    if found is not None:
        return found
    memory = own_memory(num_bytes)
    return Place(memory, address_of(memory), is_filled=False)


def own_memory(num_bytes: int, *, huge: bool = True) -> mmap.mmap:
    """Zeros of this process alone, on a page's border; pages come when they are first written.

    In huge pages there is less to look up for what is read from end to end: a third of the time of a decoding product.
    Python's own default would be shared memory, which the kernel keeps in small pages.
    """
    memory = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def address_of(memory: mmap.mmap) -> int:
    """Where a writable mapping begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
