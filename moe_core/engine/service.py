"""The engine as an asyncio program sees it: submit, listen, cancel, watch, drain."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TypeVar

from moe_core.engine.engine import Engine
from moe_core.engine.events import Done, Event, Failed
from moe_core.engine.loop import EngineLoop, EngineState
from moe_core.engine.samples import SampleShape
from moe_core.engine.sequence import SamplingParams, Sequence
from moe_core.engine.stats import Snapshot
from moe_core.engine.text import TextCodec
from moe_core.engine.wire import is_last
from moe_core.errors import EngineError
from moe_core.spec import ServeSpec

logger = logging.getLogger(__name__)
R = TypeVar("R")
# How long readers have to take the last event of an engine that stops.
LAST_WORDS_S = 2.0
Build = Callable[[ServeSpec, Callable[[EngineState], None]], tuple[Engine, TextCodec]]


class Mailbox:
    """The events of one sequence that its reader has not taken yet."""

    def __init__(self) -> None:
        self.sequence_id = 0
        self._events: list[Event] = []
        self._arrived = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add an event; on the asyncio thread."""
        self._events.append(event)
        self._arrived.set()

    async def take(self) -> list[Event]:
        """All events since the last call, at least one."""
        await self._arrived.wait()
        self._arrived.clear()
        events, self._events = self._events, []
        return events


class EngineService:
    """One engine, its state, and those who wait for its words. All methods belong to the asyncio thread."""

    def __init__(
        self,
        spec: ServeSpec,
        build: Build,
        on_state: Callable[[EngineState, BaseException | None], None] = lambda state, error: None,
    ) -> None:
        self.spec = spec
        self.routing = spec.routing()
        self.state = EngineState.LOADING
        self.error: BaseException | None = None
        self.load_seconds: float | None = None
        self.codec: TextCodec | None = None
        self.shape: SampleShape | None = None
        self.snapshot: Snapshot | None = None
        self.failed = asyncio.Event()
        # Set when someone has read of the failure, and when endless streams should end.
        self.failure_seen = asyncio.Event()
        self.closing = asyncio.Event()
        self._num_open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._build = build
        self._tell_state = on_state
        self._born = time.monotonic()
        self._asyncio = asyncio.get_running_loop()
        self._mailboxes: dict[int, Mailbox] = {}
        self._published = asyncio.Event()
        self._durations_ms: deque[float] = deque(maxlen=32)
        self._engine_loop = EngineLoop(
            self._build_engine,
            on_events=lambda events: self._hand_over(self._dispatch, events),
            on_state=lambda state, error: self._hand_over(self._note_state, state, error),
        )

    def start(self) -> None:
        """Begin to load."""
        self._tell_state(self.state, None)
        self._engine_loop.start()

    @property
    def accepts(self) -> bool:
        """Whether new requests are taken."""
        return self.state is EngineState.READY

    @property
    def retry_after_s(self) -> int:
        """In how many seconds a refused request has a fair chance: what the queue needs at the recent pace."""
        if self.snapshot is None or not self._durations_ms:
            return 1
        mean_s = sum(self._durations_ms) / len(self._durations_ms) / 1000
        return max(1, min(60, math.ceil(mean_s * (self.snapshot.waiting + 1) / self.spec.max_sequences)))

    async def submit(
        self,
        prompt_ids: list[int],
        sampling: SamplingParams,
        *,
        request_id: str,
        domain: int,
        cache_salt: str,
        record_routing: bool,
    ) -> Mailbox:
        """Queue a prompt and return where its events arrive; raises what `Engine.submit` raises."""
        assert self.codec is not None
        mailbox, stream = Mailbox(), self.codec.stream()

        def on_engine(engine: Engine) -> Sequence:
            sequence = engine.submit(
                prompt_ids,
                sampling,
                stream,
                request_id=request_id,
                domain=domain,
                cache_salt=cache_salt,
                record_routing=record_routing,
            )
            mailbox.sequence_id = sequence.id
            # Here, and not after the await: the first event may arrive before the caller wakes.
            self._mailboxes[sequence.id] = mailbox
            return sequence

        future = self._engine_loop.call(on_engine)
        try:
            await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(self._cancel_submitted)
            raise
        return mailbox

    def cancel(self, sequence_id: int) -> None:
        """Forget a sequence whose reader went away; the engine frees it at its next step."""
        self._mailboxes.pop(sequence_id, None)
        self._engine_loop.call(lambda engine: engine.cancel(sequence_id))

    @contextmanager
    def open_request(self) -> Iterator[None]:
        """Keeps `drain` waiting from a request's acceptance until its last byte is written."""
        self._num_open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_open -= 1
            if self._num_open == 0:
                self._idle.set()

    async def on_engine(self, function: Callable[[Engine], R]) -> R:
        """Run `function` on the engine's thread between two steps."""
        return await asyncio.wrap_future(self._engine_loop.call(function))

    async def next_snapshot(self, last: Snapshot, timeout_s: float) -> Snapshot:
        """The newest snapshot when there is one after `last`; after `timeout_s` the same totals with the time now."""
        if self.snapshot is None or self.snapshot.serial <= last.serial:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._published.wait()
        newest = self.snapshot
        if newest is not None and newest.serial > last.serial:
            return newest
        return dataclasses.replace(last, at_ms=time.time_ns() // 1_000_000)

    async def drain(self, seconds: float) -> None:
        """Take nothing new, let the running answers end, and end those that take too long with an error event."""
        if self.state is not EngineState.FAILED:
            self._note_state(EngineState.DRAINING, None)
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            await self._end_all(f"the engine is stopping and the answer did not end within {seconds:g} s")

    async def stop(self) -> None:
        """End the engine's thread."""
        self._engine_loop.stop()
        await asyncio.to_thread(self._engine_loop.join)

    async def _end_all(self, message: str) -> None:
        self._dispatch(await self.on_engine(lambda engine: engine.end_all("draining", message)))
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d readers did not take their last event", self._num_open)

    # On the engine's thread.

    def _build_engine(self, tell: Callable[[EngineState], None]) -> Engine:
        engine, codec = self._build(self.spec, tell)
        shape = SampleShape(engine.runner.counts, engine.stats.domains)
        engine.stats.on_publish = lambda snapshot: self._hand_over(self._note_snapshot, snapshot)
        self._hand_over(self._note_engine, codec, shape, engine.stats.snapshot(engine))
        return engine

    def _hand_over(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._asyncio.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            logger.debug("nobody listens any more")

    def _cancel_submitted(self, future: Future[Sequence]) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        self._hand_over(self.cancel, future.result().id)

    # On the asyncio thread, handed over.

    def _note_engine(self, codec: TextCodec, shape: SampleShape, snapshot: Snapshot) -> None:
        self.codec, self.shape, self.snapshot = codec, shape, snapshot

    def _note_state(self, state: EngineState, error: BaseException | None) -> None:
        if self.state is EngineState.DRAINING and error is None:
            return
        self.state, self.error = state, error
        self._tell_state(state, error)
        if state is EngineState.READY:
            self.load_seconds = round(time.monotonic() - self._born, 3)
        if state is EngineState.FAILED:
            failure = "the engine stopped; its log says why"
            self._dispatch([Failed(key, "engine_failure", failure) for key in list(self._mailboxes)])
            self.failed.set()

    def _note_snapshot(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._published.set()
        self._published = asyncio.Event()

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            mailbox = self._mailboxes.get(event.sequence_id)
            if mailbox is not None:
                mailbox.put(event)
            if is_last(event):
                self._mailboxes.pop(event.sequence_id, None)
            if isinstance(event, Done) and event.timing_ms.get("total_ms"):
                self._durations_ms.append(event.timing_ms["total_ms"] or 0.0)


def require_engine(service: EngineService) -> TextCodec:
    """The codec of an engine that is there.

    Raises:
        EngineError: while it loads, or after it failed.
    """
    if service.codec is None or service.state is EngineState.FAILED:
        raise EngineError(f"the engine is {service.state}")
    return service.codec
