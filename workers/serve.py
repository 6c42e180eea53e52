"""One replica as its node's agent keeps it: start, ask how it is, restart what crashed, drain, give up."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from common.errors import NotFound
from common.leases import Claim
from deployments.models import Replica
from deployments.observation import replica_begun, replica_seen
from deployments.states import ReplicaState, Wanted
from moe_core.errors import MoeCoreError
from workers.engine_process import EngineProcess, Failure, socket_path
from workers.sample_pump import SamplePump

log = logging.getLogger(__name__)
ASK_COMING_S = 0.1
# As often as the agent tells what it hears.
ASK_READY_S = 2.0
# An engine that is busy with a long step still answers; one that is silent for so long is stuck.
STUCK_S = 30.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# An engine that served for so long was well: its next crash is answered at once again.
WELL_AFTER_S = 10.0
MAX_STARTS = 3
# What another start would not change.
FINAL = ("checksum", "bad_spec", "bad_model", "no_files")
STATES = {
    "loading": ReplicaState.LOADING,
    "warming": ReplicaState.WARMING,
    "ready": ReplicaState.READY,
    "draining": ReplicaState.DRAINING,
}


class Served:
    """A replica, its engine while there is one, and what comes next. All methods belong to the agent's thread."""

    def __init__(self, row: Replica, bell: threading.Event) -> None:
        self.row = row
        # Rings when the engine says of a new state, and when it has ended.
        self.bell = bell
        self.engine: EngineProcess | None = None
        self.pump: SamplePump | None = None
        self.is_over = False
        self.health: dict[str, Any] = {}
        self._starts = 0
        self._pause_s = 0.0
        self._start_at = 0.0
        self._ask_at = 0.0
        self._heard_at = 0.0
        self._ready_at: float | None = None

    def look(self, claim: Claim) -> None:
        """Take the next step that is due."""
        if self.engine is None:
            self._without_engine(claim)
        elif (status := self.engine.exit_status()) is not None:
            self._ended(claim, self.engine, status)
        elif self.row.wanted == Wanted.DRAIN:
            self._drain(claim, self.engine)
        elif self.engine.has_spoken.is_set() or time.monotonic() >= self._ask_at:
            self._ask(claim, self.engine)

    def beat(self) -> tuple[int, int, dict[str, Any]] | None:
        """The heartbeat of a living engine: replica, epoch, figures and the device that it computes on."""
        if self.engine is None:
            return None
        kept = ("running", "waiting", "kv_used", "kv_total", "rss_bytes")
        figures = {key: self.health.get(key, 0) for key in kept}
        return self.row.pk, self.engine.epoch, {**figures, "device": self.health.get("device", "")}

    @property
    def is_at_rest(self) -> bool:
        """Whether an engine serves as it should: nothing is due but to ask it now and then."""
        return self.is_running and self.row.state == ReplicaState.READY and self.row.wanted == Wanted.RUN

    @property
    def is_running(self) -> bool:
        """Whether there is an engine process."""
        return self.engine is not None and self.engine.exit_status() is None

    def end_soon(self) -> None:
        """The worker ends: let the engine finish its answers, and hear its last words."""
        if self.engine is not None:
            self.engine.terminate()
        if self.pump is not None:
            self.pump.end_with_engine()

    def end(self) -> None:
        """The worker's patience is over."""
        if self.pump is not None:
            self.pump.finish()
        self.kill()

    def kill(self) -> None:
        """End everything at once, writing nothing."""
        if self.pump is not None:
            self.pump.stop()
        if self.engine is not None:
            self.engine.kill()
            self.engine.process.wait()
            self.engine.clean_up()
        self.engine, self.pump = None, None

    def _without_engine(self, claim: Claim) -> None:
        if self.row.wanted == Wanted.DRAIN:
            self._over(claim, ReplicaState.STOPPED, "replica_stopped")
        elif time.monotonic() >= self._start_at:
            self._start(claim)

    def _start(self, claim: Claim) -> None:
        is_restart = self.row.epoch > 0
        address = str(socket_path(self.row.pk, self.row.epoch + 1))
        epoch = replica_begun(claim, self.row, address=address, is_restart=is_restart)
        self.row.epoch = epoch
        self._starts += 1
        self._ready_at = None
        self._ask_at = self._heard_at = time.monotonic()
        try:
            self.engine = EngineProcess(self.row, epoch, ring=self.bell.set)
        except (OSError, NotFound, MoeCoreError) as error:
            log.warning("replica %s could not be laid out: %s", self.row.pk, error)
            words = str(error) if isinstance(error, NotFound | MoeCoreError) else error.strerror or ""
            self._give_up(claim, Failure("no_files", words))
            return
        self._write(claim, ReplicaState.STARTING, pid=self.engine.pid)

    def _ask(self, claim: Claim, engine: EngineProcess) -> None:
        now = time.monotonic()
        engine.has_spoken.clear()
        found = engine.health()
        if found is None:
            if engine.age_s > STUCK_S and now - self._heard_at > STUCK_S:
                log.error(
                    "replica %s does not answer for %.0f s and is killed", self.row.pk, now - self._heard_at
                )
                engine.kill()
            self._ask_at = now + ASK_COMING_S
            return
        self.health, self._heard_at = found, now
        state = STATES.get(str(found.get("state")))
        if state is not None and state != self.row.state:
            self._enter(claim, engine, state, found)
        self._ask_at = now + (ASK_READY_S if state == ReplicaState.READY else ASK_COMING_S)

    def _enter(self, claim: Claim, engine: EngineProcess, state: ReplicaState, found: dict[str, Any]) -> None:
        if state != ReplicaState.READY:
            self._write(claim, state)
            return
        self._ready_at = time.monotonic()
        self._starts = 0
        self.pump = SamplePump(self.row, engine.epoch, engine.spec.socket_path)
        self.pump.start()
        timings = {"load_seconds": found.get("load_seconds"), "ready_seconds": round(engine.age_s, 3)}
        self._write(claim, state, event="replica_ready", timings=timings, error="", error_detail="")

    def _drain(self, claim: Claim, engine: EngineProcess) -> None:
        if self.row.state != ReplicaState.DRAINING:
            # The row first: the gateway must stop choosing it before it stops answering.
            self._write(claim, ReplicaState.DRAINING)
        engine.terminate()
        if self.pump is not None:
            self.pump.end_with_engine()
        if engine.is_overdue():
            engine.kill()

    def _ended(self, claim: Claim, engine: EngineProcess, status: int) -> None:
        failure = engine.why_it_ended(status)
        log.warning("engine of replica %s ended: %s %s", self.row.pk, failure.code, failure.detail)
        engine.kill()
        if self.pump is not None:
            self.pump.finish()
        self.engine, self.pump, self.health = None, None, {}
        if self.row.wanted == Wanted.DRAIN:
            engine.clean_up()
            self._over(claim, ReplicaState.STOPPED, "replica_stopped")
            return
        engine.clean_up(keep_links=True)
        if failure.code in FINAL or self._starts >= MAX_STARTS:
            self._give_up(claim, failure)
            return
        self._plan_restart()
        self.row.error, self.row.error_detail = failure.code, failure.detail
        self._write(
            claim, ReplicaState.STARTING, event="replica_crashed", pid=None,
            error=failure.code, error_detail=failure.detail,
        )  # fmt: skip
        if self._pause_s == 0.0:
            self._start(claim)

    def _plan_restart(self) -> None:
        was_well = self._ready_at is not None and time.monotonic() - self._ready_at > WELL_AFTER_S
        first = self._ready_at is not None and self._pause_s == 0.0 and self._start_at == 0.0
        if was_well or first:
            self._pause_s = 0.0
        else:
            self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._pause_s))
        self._start_at = time.monotonic() + self._pause_s

    def _give_up(self, claim: Claim, failure: Failure) -> None:
        self._over(
            claim, ReplicaState.FAILED, "replica_failed", error=failure.code, error_detail=failure.detail
        )

    def _over(self, claim: Claim, state: ReplicaState, event: str, **facts: Any) -> None:
        self._write(claim, state, event=event, address="", **facts)
        self.is_over = True

    def _write(self, claim: Claim, state: ReplicaState, *, event: str = "", **facts: Any) -> None:
        if replica_seen(claim, self.row, epoch=self.row.epoch, state=state, event=event, **facts):
            self.row.state = state
