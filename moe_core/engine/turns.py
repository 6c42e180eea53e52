"""Who waits for whom when a processor is short: threads that answer wait for threads that compute.

The threads of a step meet after each product, so a millisecond taken from one is taken from all. A thread of `give_way`
does not interrupt those of `compute` when it wakes: it takes a processor that waits, which there is between two steps,
or its fair share at the kernel's next tick. Linux alone; elsewhere nothing is changed.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def give_way() -> None:
    """From now on this thread, and those that it starts, wake without interrupting others (Linux: SCHED_BATCH)."""
    if sys.platform == "linux":
        _choose(os.SCHED_BATCH)


def compute() -> None:
    """This thread, and those that it starts, are ordinary again (Linux: SCHED_OTHER)."""
    if sys.platform == "linux":
        _choose(os.SCHED_OTHER)


def _choose(policy: int) -> None:
    # Where a sandbox forbids it, things run as they did.
    with suppress(OSError):
        os.sched_setscheduler(0, policy, os.sched_param(0))
