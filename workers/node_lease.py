"""The lease of a node, kept by a thread of its own: nothing that the agent does can make it late."""

from __future__ import annotations

import logging
import threading

from django.db import DatabaseError, InterfaceError, connection

from common.errors import StaleLease
from common.leases import Claim, lease_renew
from deployments.observation import node_claim

log = logging.getLogger(__name__)


class NodeLease(threading.Thread):
    """Prolongs one claim. When it ran out and nobody took it meanwhile, it is taken again and nothing is lost."""

    def __init__(self, node: str, claim: Claim, bell: threading.Event) -> None:
        super().__init__(name="node-lease", daemon=True)
        self.node, self.claim, self.bell = node, claim, bell
        self.done = threading.Event()
        # Set, and the agent is rung for, when somebody else has the node: whatever this agent runs must end.
        self.lost = threading.Event()

    def run(self) -> None:
        """Prolong until done or lost."""
        try:
            while not self.done.wait(self.claim.ttl_s / 4) and not self.lost.is_set():
                self._prolong()
        finally:
            connection.close()

    def stop(self) -> None:
        """End the thread; the lease stays as it is."""
        self.done.set()
        self.join(timeout=10)

    def _prolong(self) -> None:
        try:
            lease_renew(self.claim)
        except StaleLease as error:
            self._take_again(str(error))
        except (DatabaseError, InterfaceError) as error:
            # Nobody else can take it either: PostgreSQL is the one that gives it.
            log.warning("the lease of %s waits for the database: %s", self.node, error)
            connection.close()

    def _take_again(self, reason: str) -> None:
        again = node_claim(name=self.node, holder=self.claim.holder)
        if again is not None and again.epoch == self.claim.epoch + 1:
            log.warning("the lease of %s had run out and is taken again: nobody had it meanwhile", self.node)
            self.claim = again
            return
        log.error("the node %s belongs to another agent now: %s", self.node, reason)
        self.lost.set()
        self.bell.set()
