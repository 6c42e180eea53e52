"""A contestant as a server in processes of its own: started, waited for, frozen while others are measured, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.accounting import signal_all, tree
from benchmarks.client import ClientError, Endpoint, complete
from benchmarks.home import ROOT
from standalone.processes import die_with_parent

READY_PATIENCE_S, STOP_PATIENCE_S = 1500.0, 20.0
GREETING = list(range(1000, 1032))


class StartFailed(Exception):
    """A server did not come to answer."""


@dataclass(slots=True)
class Server:
    """One command that serves one model."""

    name: str
    peer: str
    precision: str
    command: Callable[[int, int], list[str]]
    endpoint: Callable[[int], Endpoint]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    # What loads for minutes is started once, and frozen while it is not its turn.
    stays: bool = False
    note: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    at: Endpoint = field(init=False, repr=False)
    threads: int = 0

    def start(self, threads: int) -> float:
        """Start with so many threads and wait for the first token; the seconds that it took.

        Raises:
            StartFailed: when it ends, or says nothing for too long.
        """
        port = free_port()
        self.at, self.threads = self.endpoint(port), threads
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", **self.environment}
        began = time.perf_counter()
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(port, threads), cwd=ROOT, env=environment, stdout=output, stderr=output,
                stdin=subprocess.DEVNULL, preexec_fn=die_with_parent(signal.SIGKILL), start_new_session=True,
            )  # fmt: skip
        try:
            asyncio.run(self._first_token())
        except BaseException:
            self.stop()
            raise
        return time.perf_counter() - began

    async def _first_token(self) -> None:
        until = time.monotonic() + READY_PATIENCE_S
        while True:
            assert self.process is not None
            if self.process.poll() is not None:
                raise StartFailed(f"{self.name} ended with status {self.process.returncode}; see {self.log}")
            try:
                await complete(self.at, GREETING, 1)
                return
            except (OSError, ClientError, asyncio.IncompleteReadError) as error:
                if time.monotonic() > until:
                    raise StartFailed(f"{self.name} did not answer: {error}; see {self.log}") from error
            await asyncio.sleep(0.05)

    def pids(self) -> set[int]:
        """All its processes."""
        return tree([self.process.pid]) if self.process else set()

    def freeze(self) -> None:
        """Take nothing of the machine."""
        signal_all(self.pids(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        signal_all(self.pids(), signal.SIGCONT)

    def stop(self) -> None:
        """End it, by force when it does not go."""
        if self.process is None:
            return
        everything = self.pids()
        signal_all(everything, signal.SIGCONT)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_PATIENCE_S)
        signal_all(everything & tree(everything), signal.SIGKILL)
        self.process.wait()
        self.process = None


def free_port() -> int:
    """A TCP port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
