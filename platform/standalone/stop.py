"""`./turnout stop`: end the instance that runs in the data folder."""

from __future__ import annotations

import os
import signal
import time

from standalone import paths
from standalone.errors import StandaloneError
from standalone.instance import running_instance
from standalone.terminal import say

PATIENCE_S = 90.0


def run(_name: str, _arguments: list[str]) -> int:
    """Ask the supervisor to stop and wait until it has let go of the data folder."""
    data_dir = paths.data_dir()
    instance = running_instance(data_dir)
    if instance is None:
        say(f"No instance runs in {data_dir}.")
        return 0
    os.kill(instance.pid, signal.SIGINT)
    deadline = time.monotonic() + PATIENCE_S
    while running_instance(data_dir) is not None:
        if time.monotonic() > deadline:
            raise StandaloneError(
                f"pid {instance.pid} did not stop within {PATIENCE_S:g} s; see {data_dir / 'log'}."
            )
        time.sleep(0.1)
    say("Stopped.")
    return 0
