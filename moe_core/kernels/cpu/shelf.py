"""Where panels lie: in memory of the process alone, or in a file that is mapped and shared with other processes."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from moe_core.kernels.cpu.arena import ARENA

PAGE_BYTES = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Place:
    """Memory for one stack of panels, at the start of a cache line; `memory` keeps it alive: a mapping of the process's own,
    or a view of a file's."""

    memory: Any
    address: int
    # Whether it holds the panels already.
    is_filled: bool


class Shelf(Protocol):
    """Gives places in the order in which a model asks for them, which is the same each time."""

    def place(self, what: str, num_bytes: int) -> Place | None:
        """A place for what is described; None where the process's own memory has to do."""
        ...

    def lies_next(self, what: str, num_bytes: int) -> bool | None:
        """Whether the next place asked for holds what is described; None where it is yet to be filled."""
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
    memory, address = ARENA.reserve(num_bytes)
    return Place(memory, address, is_filled=False)


def lies_next(what: str, num_bytes: int) -> bool | None:
    """Whether panels described so are the next on the shelf of the block that runs; None where none are there yet."""
    shelf = _shelf.get()
    return None if shelf is None else shelf.lies_next(what, num_bytes)
