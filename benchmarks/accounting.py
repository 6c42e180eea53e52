"""What a contestant's processes take of the machine, and what everybody else takes meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


def _stat(pid: int) -> list[str] | None:
    """The fields of a process after its name, beginning with its state; None when it is gone."""
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return None


def tree(roots: Iterable[int]) -> set[int]:
    """The processes and all that descend from them."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, left = set(), list(roots)
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor seconds of the processes, and of their children that have ended and were waited for."""
    ticks = 0
    for pid in pids:
        if fields := _stat(pid):
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS_A_SECOND


def pss_bytes(pids: Iterable[int]) -> int:
    """Memory of the processes, shared pages divided among those who share them."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _busy_seconds() -> float:
    """What all processors have worked since the machine started."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(value) for value in file.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / TICKS_A_SECOND


@dataclass(slots=True)
class Meter:
    """Reads the clocks at two moments."""

    pids: set[int]
    wall: float = 0.0
    cpu: float = 0.0
    busy: float = 0.0
    own: float = 0.0

    def start(self) -> None:
        """The first moment."""
        self.wall, self.cpu = time.perf_counter(), cpu_seconds(self.pids)
        self.busy, self.own = _busy_seconds(), time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds since then on the wall and of the contestant's processors, and the share of the machine that
        others took: neither the contestant nor the client."""
        wall = time.perf_counter() - self.wall
        cpu = cpu_seconds(self.pids) - self.cpu
        others = _busy_seconds() - self.busy - cpu - (time.process_time() - self.own)
        return {
            "wall": wall,
            "cpu": cpu,
            "foreign": max(0.0, others) / (wall * (os.cpu_count() or 1)),
        }
