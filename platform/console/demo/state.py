"""What one step of the demo hands to the next, and the report that grows on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from console.demo.client import Api

LINE_EVERY_S = 5.0


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
    """One line on the terminal that follows a job; whole lines, every few seconds, where they go into a file."""

    def __init__(self, watched: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.watched, self.clock = watched, clock
        self.last = ""
        # What the last whole line said: state and stage, percent, and when.
        self.said: tuple[Any, int, float] = (None, 0, 0.0)

    def __call__(self, job: dict[str, Any]) -> None:
        """Show the job's stage and progress when they changed."""
        percent = round(100 * (job["progress"] or 0))
        line = f"  {job['state']:<10} {job['stage'] or '':<18} {percent} %"
        if self.watched:
            if line != self.last:
                print(f"\r{line:<60}", end="" if job["state"] in ("queued", "running") else "\n", flush=True)
            self.last = line
        elif self._is_due(job, percent):
            self.said = ((job["state"], job["stage"]), percent, self.clock())
            print(line, flush=True)

    def _is_due(self, job: dict[str, Any], percent: int) -> bool:
        """Each stage is told at once; within one, what has moved is told every few seconds."""
        where, before, at = self.said
        if (job["state"], job["stage"]) != where:
            return True
        return percent != before and self.clock() - at >= LINE_EVERY_S
