"""Level-triggered loops run by `manage.py reconciler`: each looks at the state, acts, and comes back.

    @loop("jobs", every_s=3)
    def reconcile_jobs() -> None: ...

    wake("jobs")      # in a transaction: rings when it commits, and is lost with no harm

Several reconcilers may run: each loop is guarded by a lease, so that one of them turns it at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from django.db import connection

CHANNEL = "turnout_wake"


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop: its name, its period in seconds and what it does at each turn."""

    name: str
    every_s: float
    turn: Callable[[], None]


loops: dict[str, Loop] = {}


def loop(name: str, *, every_s: float) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a function as a loop of the reconciler."""

    def register(turn: Callable[[], None]) -> Callable[[], None]:
        loops[name] = Loop(name, every_s, turn)
        return turn

    return register


def wake(name: str) -> None:
    """Ask for an early turn of a loop; PostgreSQL delivers the notice when the transaction commits."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, name])
