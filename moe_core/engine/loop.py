"""A thread that owns the engine: others send it calls, it sends them events."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import StrEnum
from typing import TypeVar

from moe_core.engine import turns
from moe_core.engine.engine import Engine
from moe_core.engine.events import Event
from moe_core.errors import EngineError

logger = logging.getLogger(__name__)
R = TypeVar("R")


class EngineState(StrEnum):
    """What the engine process is doing."""

    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class EngineLoop(threading.Thread):
    """Builds the engine, then steps it for as long as there is work, and sleeps when there is none.

    `build` runs on this thread and may call its argument to tell a new state. `on_events` and `on_state` are called
    on this thread too, and must return at once.
    """

    def __init__(
        self,
        build: Callable[[Callable[[EngineState], None]], Engine],
        *,
        on_events: Callable[[list[Event]], None],
        on_state: Callable[[EngineState, BaseException | None], None],
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._build = build
        self._on_events = on_events
        self._on_state = on_state
        # None ends the thread.
        self._calls: queue.SimpleQueue[Callable[[Engine], None] | None] = queue.SimpleQueue()
        # Guards the moment between the last call taken and the end: a call either runs or is refused.
        self._gate = threading.Lock()
        self._closed = False

    def call(self, function: Callable[[Engine], R]) -> Future[R]:
        """Run `function` on the engine's thread between two steps; the future has its result or its exception."""
        future: Future[R] = Future()

        def run(engine: Engine) -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(engine))
            except BaseException as error:
                future.set_exception(error)

        with self._gate:
            if self._closed:
                future.set_exception(EngineError("the engine has stopped"))
            else:
                self._calls.put(run)
        return future

    def stop(self) -> None:
        """End the thread after the calls that were sent before."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._calls.put(None)

    def run(self) -> None:
        """Build, serve until stopped, and tell when it breaks."""
        turns.compute()  # the kernels' own threads start from this one
        try:
            engine = self._build(lambda state: self._on_state(state, None))
            self._on_state(EngineState.READY, None)
            try:
                self._serve(engine)
            finally:
                engine.close()
        except BaseException as error:
            logger.exception("the engine stopped")
            with self._gate:
                self._closed = True
            self._on_state(EngineState.FAILED, error)

    def _serve(self, engine: Engine) -> None:
        while self._take_calls(engine):
            if engine.has_work:
                events = engine.step()
                if events:
                    self._on_events(events)

    def _take_calls(self, engine: Engine) -> bool:
        """Run what was sent; wait for something when there is no work. False when told to stop."""
        wait = not engine.has_work
        while True:
            try:
                call = self._calls.get(block=wait)
            except queue.Empty:
                return True
            if call is None:
                return False
            call(engine)
            wait = False
