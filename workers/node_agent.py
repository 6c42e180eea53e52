"""The node agent: a bootstep of the Celery worker that turns the replica rows of its node into engine processes.

It holds the lease `node:<name>`. A wish in PostgreSQL rings it; without the bell it looks every second. When the
database is away the engines go on serving; when the lease is lost they are killed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

import psutil
import psycopg
from celery import bootsteps
from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections, connection

from common.bell import hear
from common.errors import StaleLease
from common.holders import this_process
from common.leases import Claim, lease_release
from common.processors import usable_processors
from deployments.observation import (
    bell_of,
    node_claim,
    node_report,
    replicas_let_go,
    replicas_on,
    wishes_on,
)
from deployments.states import Wanted
from workers.node_lease import NodeLease
from workers.serve import Served

log = logging.getLogger(__name__)
# How long a turn may be away: where something comes or goes, and where all is at rest. What an engine's end, a wish or a
# lost lease asks for is rung for.
TICK_S, REST_S = 0.1, 1.0
LOOK_EVERY_S = 1.0
BEAT_EVERY_S = 2.0
# The supervisor gives the worker ten seconds to end.
STOP_PATIENCE_S = 8.0


class NodeAgent(threading.Thread):
    """Keeps the engines of one node."""

    def __init__(self, name: str) -> None:
        super().__init__(name="node-agent", daemon=True)
        self.node = name
        self.holder = f"{name}/{this_process()}"
        self.served: dict[int, Served] = {}
        self.lease: NodeLease | None = None
        self.stopping = threading.Event()
        self.bell = threading.Event()
        self._look_at = self._beat_at = self._claim_at = 0.0

    def run(self) -> None:
        """Turn until stopped, then end the engines in order."""
        Bell(self.node, self.bell, self.stopping).start()
        try:
            while not self.stopping.is_set():
                self._guarded_turn()
                self.bell.wait(REST_S if self.is_at_rest else TICK_S)
        finally:
            self._end()
            connection.close()

    def stop(self) -> None:
        """Ask the thread to end and wait for it."""
        self.stopping.set()
        self.bell.set()
        self.join(timeout=STOP_PATIENCE_S + 4)

    def _guarded_turn(self) -> None:
        try:
            self.turn()
        except StaleLease as error:
            # Of the node: its lease tells. Of one replica: the rows tell.
            log.info("the agent of %s looks again: %s", self.node, error)
            self._look_at = 0.0
        except (DatabaseError, InterfaceError) as error:
            log.warning("the agent of %s waits for the database: %s", self.node, error)
            connection.close()
            self.stopping.wait(0.5)
        except Exception:
            log.exception("a turn of the agent of %s failed", self.node)
            self.stopping.wait(0.5)
        finally:
            close_old_connections()

    @property
    def claim(self) -> Claim | None:
        """The right to this node, while it is ours."""
        return self.lease.claim if self.lease is not None else None

    @property
    def is_at_rest(self) -> bool:
        """Whether the node is ours and all of its engines serve."""
        return self.lease is not None and all(served.is_at_rest for served in self.served.values())

    def turn(self) -> None:
        """One round: hold the lease, read the rows, look after each replica, report."""
        now = time.monotonic()
        rung = self.bell.is_set()
        self.bell.clear()
        self._hold_lease(now)
        claim = self.claim
        if claim is None:
            return
        if rung or now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._read_rows()
        for served in list(self.served.values()):
            served.look(claim)
            if served.is_over:
                del self.served[served.row.pk]
        if now >= self._beat_at:
            self._beat_at = now + BEAT_EVERY_S
            self._report(claim)

    def _hold_lease(self, now: float) -> None:
        if self.lease is not None and self.lease.lost.is_set():
            self._give_up()
        if self.lease is not None or now < self._claim_at:
            return
        self._claim_at = now + 0.5
        claim = node_claim(name=self.node, holder=self.holder)
        if claim is None:
            return
        log.info("this worker keeps the engines of %s (epoch %s)", self.node, claim.epoch)
        self.lease = NodeLease(self.node, claim, self.bell)
        self.lease.start()
        self._report(claim)

    def _read_rows(self) -> None:
        wishes = wishes_on(self.node)
        for pk, wanted in wishes.items():
            if pk in self.served:
                self.served[pk].row.wanted = Wanted(wanted)
        if wishes.keys() - self.served.keys():
            for row in replicas_on(self.node):
                self.served.setdefault(row.pk, Served(row, self.bell))
        for pk in self.served.keys() - wishes.keys():
            log.warning("replica %s is no longer this node's; its engine is killed", pk)
            self.served.pop(pk).kill()

    def _report(self, claim: Claim) -> None:
        beats = [beat for served in self.served.values() if (beat := served.beat()) is not None]
        node_report(claim, name=self.node, capacity=capacity(), beats=beats)

    def _give_up(self) -> None:
        """Another agent has the node: nothing of ours may go on."""
        for served in self.served.values():
            served.kill()
        self.served.clear()
        self.lease = None

    def _end(self) -> None:
        """Let running answers end, then the engines, then the lease."""
        for served in self.served.values():
            served.end_soon()
        deadline = time.monotonic() + STOP_PATIENCE_S
        while time.monotonic() < deadline and any(served.is_running for served in self.served.values()):
            time.sleep(TICK_S)
        for served in self.served.values():
            served.end()
        if self.lease is None:
            return
        self.lease.stop()
        try:
            replicas_let_go(self.lease.claim, node_name=self.node)
            lease_release(self.lease.claim)
        except (StaleLease, DatabaseError, InterfaceError) as error:
            log.warning("the agent of %s could not say good-bye: %s", self.node, error)


class Bell(threading.Thread):
    """Hears PostgreSQL ring for this node; without it the agent looks every second."""

    def __init__(self, node: str, bell: threading.Event, stopping: threading.Event) -> None:
        super().__init__(name="node-bell", daemon=True)
        self.word, self.bell, self.stopping = bell_of(node), bell, stopping

    def run(self) -> None:
        """Listen, and begin again when cut off."""
        while not self.stopping.is_set():
            try:
                hear(self._heard, self.stopping)
            except psycopg.Error as error:
                log.info("the bell of the node is quiet: %s", error)
                self.stopping.wait(1)

    def _heard(self, word: str) -> None:
        if word == self.word:
            self.bell.set()


def capacity() -> dict[str, Any]:
    """What this machine has and how much of it is free."""
    memory = psutil.virtual_memory()
    return {
        "cpus": usable_processors(),
        "memory_bytes": memory.total,
        "free_bytes": memory.available,
        "load": round(os.getloadavg()[0], 2),
    }


class NodeAgentStep(bootsteps.StartStopStep):
    """Starts the agent with the worker and ends it with the worker."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.agent: NodeAgent | None = None

    def start(self, parent: Any) -> None:
        """The worker is up."""
        self.agent = NodeAgent(settings.NODE_NAME)
        self.agent.start()

    def stop(self, parent: Any) -> None:
        """The worker ends in order."""
        if self.agent is not None:
            self.agent.stop()

    def terminate(self, parent: Any) -> None:
        """The worker ends in a hurry."""
        self.stop(parent)
