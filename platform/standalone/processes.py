"""Child processes that cannot outlive their parent, and programs that refuse to run as root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
UNPRIVILEGED_ID = 1000
IS_LINUX = sys.platform.startswith("linux")
_libc = ctypes.CDLL(None, use_errno=True) if IS_LINUX else None


def die_with_parent(
    death_signal: int = signal.SIGKILL, *, as_root_in_user_namespace: bool = False
) -> Callable[[], None]:
    """Return a `preexec_fn`: the kernel sends `death_signal` when the thread that forked ends.

    With `as_root_in_user_namespace`, the child sees itself as an ordinary user (PostgreSQL refuses to run as
    root), while the files that it makes stay ours and no system user and no open parent folder is needed.
    """
    parent = os.getpid()

    def prepare() -> None:
        if _libc is None:
            return
        if as_root_in_user_namespace:
            _enter_user_namespace()
        _libc.prctl(PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return prepare


def _enter_user_namespace() -> None:
    """Map ourselves to an ordinary user; Python 3.11 has no os.unshare."""
    uid, gid = os.geteuid(), os.getegid()
    assert _libc is not None
    if _libc.unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER) is forbidden here")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{UNPRIVILEGED_ID} {uid} 1"),
        ("gid_map", f"{UNPRIVILEGED_ID} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def needs_user_namespace() -> bool:
    """True where a program that refuses root would refuse us."""
    return IS_LINUX and os.geteuid() == 0


def give_way() -> None:
    """Let this process, and all that it starts, wake without interrupting others (Linux: SCHED_BATCH).

    An engine beside it computes with threads that wait for each other; its own make themselves ordinary again
    (`moe_core.engine.turns`).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def stop(process: subprocess.Popen[bytes], stop_signal: int, patience_s: float) -> int | None:
    """Ask a process to end, wait, and kill it when it does not; return its exit status."""
    if process.poll() is not None:
        return process.returncode
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(stop_signal)
    try:
        return process.wait(patience_s)
    except subprocess.TimeoutExpired:
        kill_group(process)
        return process.wait(5)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a child that leads its own session, with all that it started there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], patience_s: float) -> bool:
    """Poll until `ready` says yes; False when the process has ended or patience has."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if ready():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return False


def tail(path: Path, lines: int = 12) -> str:
    """Return the last lines of a log, for an error message."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
