"""How far an operation is: a part of its work, how much of it is done, how much there is.

A watcher is called between two pieces of work; it may raise (`Cancelled`), and then the operation leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

# What is counted: experts' loads, router inputs and losses in prompts; alignment, fits, packing and copies in layers;
# learning in steps.
Part = Literal["load", "inputs", "align", "fit", "pack", "lay", "learn", "measure"]
Watch = Callable[[Part, int, int], None]


def unwatched(part: Part, done: int, of: int) -> None:
    """Nobody watches."""
