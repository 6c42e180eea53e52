"""What one step of the demo hands to the next, and the report that grows on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from console.demo.client import Api


@dataclass(slots=True)
class Journey:
    """One run of the main job."""

    api: Api
    label: str
    quick: bool = False
    report: dict[str, Any] = field(default_factory=lambda: {"ok": False, "seconds": 0.0, "steps": []})
    ids: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Time one step and write down what came of it, also when it fails."""
        entry: dict[str, Any] = {"name": name, "ok": False}
        self.report["steps"].append(entry)
        began = time.monotonic()
        print(f"\n▸ {name}", flush=True)
        try:
            yield entry
            entry["ok"] = True
        except Exception as error:
            entry["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            entry["seconds"] = round(time.monotonic() - began, 2)
            print(f"  {'done' if entry['ok'] else 'FAILED'} in {entry['seconds']:.1f} s", flush=True)


class Progress:
    """One line on the terminal that follows a job; whole lines where nobody watches."""

    def __init__(self, watched: bool) -> None:
        self.watched = watched
        self.last = ""

    def __call__(self, job: dict[str, Any]) -> None:
        """Show the job's stage and progress when they changed."""
        percent = f"{100 * (job['progress'] or 0):.0f} %"
        line = f"  {job['state']:<10} {job['stage'] or '':<18} {percent}"
        if line == self.last:
            return
        if self.watched:
            print(f"\r{line:<60}", end="" if job["state"] in ("queued", "running") else "\n", flush=True)
        elif line.split()[:2] != self.last.split()[:2]:
            print(line, flush=True)
        self.last = line
