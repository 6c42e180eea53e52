"""Keeps child programs running: starts them in order, restarts what crashes, stops them in reverse."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from standalone import processes
from standalone.terminal import note

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# A child that ran this long was well: its next crash is answered at once again.
WELL_AFTER_S = 60.0
MAX_LOG_BYTES = 32 * 2**20


@dataclass(slots=True)
class Program:
    """One program to keep running."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log_path: Path
    patience_s: float = 10.0
    process: subprocess.Popen[bytes] | None = None
    pause_s: float = FIRST_PAUSE_S
    started_at: float = 0.0
    restart_at: float | None = None
    restarts: int = 0

    def start(self) -> None:
        """Start it in its own session, so that Ctrl-C reaches only us, and bound to our life."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > MAX_LOG_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.environment),
                start_new_session=True,
                # Killed with us, without a drain: its database has gone at the same moment.
                preexec_fn=processes.die_with_parent(signal.SIGKILL),
            )
        self.started_at = time.monotonic()
        self.restart_at = None

    def look(self) -> None:
        """Notice a crash and plan the restart, or carry out a planned one."""
        now = time.monotonic()
        if self.restart_at is not None:
            if now >= self.restart_at:
                self.start()
                self.restarts += 1
            return
        if self.process is None or self.process.poll() is None:
            return
        processes.kill_group(self.process)  # what the crashed program left in its session
        if now - self.started_at > WELL_AFTER_S:
            self.pause_s = FIRST_PAUSE_S
        note(
            f"{self.name} ended ({describe_exit(self.process.returncode)}); starting it again in {self.pause_s:g} s. "
            f"Its log: {self.log_path}"
        )
        self.restart_at = now + self.pause_s
        self.pause_s = min(self.pause_s * 2, LONGEST_PAUSE_S)

    def stop(self) -> None:
        """Ask it to end, wait for its patience, then kill all that it started."""
        if self.process is not None and self.restart_at is None:
            processes.stop(self.process, signal.SIGTERM, self.patience_s)
            processes.kill_group(self.process)
        self.process = None


@dataclass(slots=True)
class Supervisor:
    """Several programs and the wish to stop."""

    programs: list[Program] = field(default_factory=list)
    stopping: bool = False

    def listen_to_signals(self) -> None:
        """Ctrl-C, SIGTERM and a closed terminal all mean: stop cleanly."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._wish_to_stop)

    def _wish_to_stop(self, *_: object) -> None:
        """Remember the wish; the loop acts on it."""
        self.stopping = True

    def start(self, program: Program) -> None:
        """Start one more program and keep it running from now on."""
        program.start()
        self.programs.append(program)

    def keep_running(self) -> None:
        """Watch until somebody wishes to stop."""
        while not self.stopping:
            for program in self.programs:
                program.look()
            # Not a wait for work: SIGCHLD does not end a sleep in Python, so crashes are looked for.
            time.sleep(0.2)

    def wait_for(self, ready: Callable[[], bool], patience_s: float) -> bool:
        """Watch until `ready` says yes; False when patience or the wish to run ends first."""
        deadline = time.monotonic() + patience_s
        while not self.stopping and time.monotonic() < deadline:
            if ready():
                return True
            for program in self.programs:
                program.look()
            time.sleep(0.05)
        return False

    def stop(self) -> None:
        """Stop all programs, the last one first."""
        for program in reversed(self.programs):
            program.stop()


def describe_exit(status: int) -> str:
    """Return an exit status in words."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return our environment with `extra` over it."""
    return {**os.environ, **extra}
