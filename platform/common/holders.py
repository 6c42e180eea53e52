"""Which process holds a lease, in words that another process of the same machine can check.

A lease outlives its holder by its time. Whoever stands on the same machine need not wait for that: a process that has ended
writes nothing any more. The words name the machine (host and boot), the space in which process numbers count (a
container has its own), the number, and when it started, for numbers are used again.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

MARK = "proc:"


def this_process() -> str:
    """The calling process as one word without a slash, to be a part of a holder's name."""
    pid = os.getpid()
    return f"{MARK}{socket.gethostname()}:{_machine()}:{pid}:{_started_at(pid)}"


def is_gone(holder: str) -> bool:
    """Whether the process that a holder's name names has certainly ended; False where it cannot be told from here."""
    word = next((part for part in holder.split("/") if part.startswith(MARK)), "")
    place, _, numbers = word.removeprefix(MARK).rpartition(":")
    place, _, pid = place.rpartition(":")
    if not _machine() or place != f"{socket.gethostname()}:{_machine()}" or not pid.isdigit() or not numbers:
        return False
    try:
        # Another user's /proc may be hidden; its processes are still known to the kernel.
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    started_at = _started_at(int(pid))
    return bool(started_at) and started_at != numbers


def _machine() -> str:
    """This boot of this machine and the space of process numbers; "" where there is no /proc to tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _started_at(pid: int) -> str:
    """When a process started, in ticks since the boot; "zombie" for one that has ended and waits to be collected, "" if
    it cannot be read."""
    try:
        # The name of the program stands in brackets and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # The first thread may end before the others.
        alone = len(os.listdir(f"/proc/{pid}/task")) == 1
    except (OSError, ValueError):
        return ""
    return "zombie" if fields[0] in "ZX" and alone else fields[19]
