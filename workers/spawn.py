"""Child processes of a worker: own session, dead with their parent, bounded, and without its secrets.

The kernel's parent-death signal follows the thread that forked, not the process. So one thread that lives as long as
the worker starts every child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

PR_SET_PDEATHSIG = 1
MAX_OPEN_FILES = 4096
# The kernel should take a child before the worker that can report its death.
OOM_SCORE = b"500"
KEPT_VARIABLES = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "TRITON_CACHE_DIR", "TURNOUT_FAILPOINTS",
)  # fmt: skip
FIXED_VARIABLES = {
    "PYTHONUNBUFFERED": "1",
    # Equal inputs give equal bits.
    "PYTHONHASHSEED": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "HF_HUB_OFFLINE": "1",
}
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may take; None is no limit."""

    memory_bytes: int | None = None
    file_bytes: int | None = None


def scrubbed_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The few variables that a child needs; addresses and keys of services are not among them."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | FIXED_VARIABLES | dict(more or {})


def _prepare(parent: int, limits: Limits) -> None:
    """Runs in the child between fork and exec."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as file:
            file.write(OOM_SCORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    if limits.memory_bytes is not None:
        _lower(resource.RLIMIT_AS, limits.memory_bytes)
    if limits.file_bytes is not None:
        _lower(resource.RLIMIT_FSIZE, limits.file_bytes)


def _lower(kind: int, wanted: int) -> None:
    _soft, hard = resource.getrlimit(kind)
    bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (bound, bound))


class Spawner:
    """The one thread that forks."""

    def __init__(self) -> None:
        self.wishes: queue.Queue[
            tuple[Future[subprocess.Popen[bytes]], Sequence[str], Path, Limits, dict[str, str]]
        ] = queue.Queue()
        self.thread = threading.Thread(target=self._serve, name="spawner", daemon=True)
        self.thread.start()

    def spawn(
        self, command: Sequence[str], *, cwd: Path, limits: Limits, environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a child in its own session with pipes for its output; raises what the start raised."""
        future: Future[subprocess.Popen[bytes]] = Future()
        self.wishes.put((future, command, cwd, limits, environment))
        return future.result()

    def _serve(self) -> None:
        while True:
            future, command, cwd, limits, environment = self.wishes.get()
            parent = os.getpid()
            try:
                process = subprocess.Popen(
                    command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, start_new_session=True,
                    preexec_fn=partial(_prepare, parent, limits),
                )  # fmt: skip
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(process)


@lru_cache(maxsize=1)
def spawner() -> Spawner:
    """The process's spawner."""
    return Spawner()


def kill_group(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Signal a child and everything that it started; harmless when it has ended."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
