"""The heartbeat of one job, in a thread of its own: nothing that the job does can make it late.

It prolongs the lease, brings the wish of people (cancel, pause) to the child, and fences: a worker that lost its lease,
or cannot reach the database for as long as the lease lasts, kills its own child.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from django.db import DatabaseError, InterfaceError, connection

from common.errors import StaleLease
from jobs.execution import JobClaim, job_heartbeat, job_wanted
from workers.runtime import Child, Stop

log = logging.getLogger(__name__)
LOOK_EVERY_S = 0.4
# A child that was asked to stop and does not come to the end of its step.
PATIENCE_S = 30.0


class Keeper(threading.Thread):
    """Keeps the lease of one claim while its child runs."""

    def __init__(self, claim: JobClaim, stopping: threading.Event) -> None:
        super().__init__(name=f"keeper-job-{claim.job_id}", daemon=True)
        self.claim, self.stopping = claim, stopping
        self.child: Child | None = None
        self.done = threading.Event()
        # Set when the lease is lost: whatever else happens, nothing may be written any more.
        self.lost = threading.Event()
        self.asked: Stop | None = None
        # True when the worker ends, and not the job: the job goes back to the queue.
        self.giving_back = False
        self.asked_at = 0.0
        self.kept_at = time.monotonic()
        self.beat_at = 0.0

    def run(self) -> None:
        """Beat until done."""
        ttl = self.claim.lease.ttl_s
        try:
            while not self.done.is_set() and not self.lost.is_set():
                if time.monotonic() >= self.beat_at:
                    self.beat_at = time.monotonic() + ttl / 3
                    self._guarded(lambda: job_heartbeat(self.claim), keeps=True)
                self._guarded(self._heed)
                self._enforce()
                self.done.wait(min(LOOK_EVERY_S, ttl / 5))
        finally:
            connection.close()

    def stop(self) -> None:
        """End the thread; the lease stays as it is."""
        self.done.set()
        self.join(timeout=10)

    def _guarded(self, action: Callable[[], None], *, keeps: bool = False) -> None:
        started = time.monotonic()
        try:
            action()
        except StaleLease as error:
            self._fence(str(error))
        except (DatabaseError, InterfaceError) as error:
            log.warning("job %s: the database does not answer: %s", self.claim.job_id, error)
            connection.close()
            # Try again at once, on a fresh connection: the lease goes on running out.
            self.beat_at = 0.0
            if time.monotonic() - self.kept_at > self.claim.lease.ttl_s:
                self._fence("the lease ran out while the database did not answer")
        else:
            if keeps:
                # Counted from before the round trip: the lease is never thought longer than it is.
                self.kept_at = started

    def _fence(self, reason: str) -> None:
        log.error("job %s (epoch %s) is no longer ours: %s", self.claim.job_id, self.claim.epoch, reason)
        self.lost.set()
        if self.child is not None:
            self.child.kill()

    def _heed(self) -> None:
        """Bring a wish to the child, once; a cancel may follow a pause."""
        wanted: Stop | None = job_wanted(self.claim)
        if wanted is None and self.stopping.is_set():
            wanted, self.giving_back = "pause", True
        if wanted is None or wanted == self.asked or self.child is None:
            return
        self.asked, self.asked_at = wanted, time.monotonic()
        self.child.ask_to_stop(wanted)

    def _enforce(self) -> None:
        """Kill a child that does not heed; its last checkpoint stays."""
        if (
            self.asked is not None
            and self.child is not None
            and time.monotonic() - self.asked_at > PATIENCE_S
        ):
            self.child.kill()
