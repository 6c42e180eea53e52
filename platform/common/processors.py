"""How many processors this process may use."""

from __future__ import annotations

import os


def usable_processors() -> int:
    """Those that it may run on, of all that there are; a container or `taskset` may leave it fewer."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
