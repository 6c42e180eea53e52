"""`manage.py reconciler`: turn every registered loop, on its period and when it is woken."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from typing import Any

import psycopg
from django.core.management.base import BaseCommand
from django.db import DatabaseError, connection

from common.bell import hear
from common.errors import StaleLease
from common.holders import this_process
from common.leases import Claim, lease_claim, lease_release, lease_renew
from common.loops import Loop, loops

log = logging.getLogger(__name__)
LEASE_TTL_S = 10
STAYS_CONNECTED_S = 30.0


class Turner(threading.Thread):
    """One loop in its own thread, while it holds the loop's lease."""

    def __init__(self, item: Loop, holder: str, stop: threading.Event) -> None:
        super().__init__(name=f"loop-{item.name}", daemon=True)
        self.item, self.holder, self.stopping = item, holder, stop
        self.bell = threading.Event()
        self.ttl_s = max(LEASE_TTL_S, 4 * item.every_s)
        self.claim: Claim | None = None
        # On this process's clock, which goes on while it is frozen.
        self.renewed_at = 0.0

    def run(self) -> None:
        """Turn until stopped; an error is logged and the next turn comes as usual."""
        while not self.stopping.is_set():
            try:
                self.turn_if_ours()
            except DatabaseError as error:
                log.warning("loop %s waits for the database: %s", self.item.name, error)
                connection.close()
            except Exception:
                log.exception("loop %s failed", self.item.name)
                connection.close()
            else:
                # To connect anew takes longer than most turns: a loop that turns often stays connected.
                if self.item.every_s > STAYS_CONNECTED_S:
                    connection.close()
            self.bell.wait(self.item.every_s)
            self.bell.clear()
        self.give_back()

    def turn_if_ours(self) -> None:
        """Hold the lease, then take one turn."""
        now = time.monotonic()
        if self.claim is not None and now - self.renewed_at >= self.ttl_s / 4:
            try:
                lease_renew(self.claim)
                self.renewed_at = now
            except StaleLease:
                self.claim = None
        if self.claim is None:
            resource = f"loop:{self.item.name}"
            self.claim = lease_claim(resource=resource, holder=self.holder, ttl_s=self.ttl_s)
            self.renewed_at = now
        if self.claim is not None:
            self.item.turn()

    def give_back(self) -> None:
        """Let another reconciler take the loop at once."""
        if self.claim is not None:
            try:
                lease_release(self.claim)
            except DatabaseError:
                log.warning(
                    "loop %s: the lease could not be given back; it expires by itself", self.item.name
                )
        connection.close()


class Command(BaseCommand):
    """Run the loops until SIGTERM or SIGINT."""

    help = __doc__

    def handle(self, *args: Any, **options: Any) -> None:
        """Start one thread per loop and listen for bells."""
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        holder = f"{socket.gethostname()}/{this_process()}"
        turners = {name: Turner(item, holder, stop) for name, item in loops.items()}
        for turner in turners.values():
            turner.start()
        log.info("reconciler turns %s", ", ".join(sorted(turners)))
        while not stop.is_set():
            try:
                hear(lambda word: ring(turners, word), stop)
            except (psycopg.Error, DatabaseError) as error:
                log.warning("reconciler lost its bell: %s", error)
                stop.wait(1)
        for turner in turners.values():
            turner.bell.set()
        for turner in turners.values():
            turner.join(timeout=10)


def ring(turners: dict[str, Turner], word: str) -> None:
    """Wake the loop of that name, when it is one of ours."""
    if word in turners:
        turners[word].bell.set()
