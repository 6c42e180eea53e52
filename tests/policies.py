"""Whether processes may choose here how they are scheduled."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

TRY = (
    "import os; os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); print(os.sched_getscheduler(0))"
)


@cache
def may_choose_batch() -> bool:
    """Tried in a child, which leaves this process as it is: Linux has the policy, but a sandbox may forbid it."""
    if sys.platform != "linux":
        return False
    return (
        subprocess.run([sys.executable, "-c", TRY], capture_output=True, check=False).stdout.strip() == b"3"
    )
