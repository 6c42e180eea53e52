"""The engine as an asyncio program sees it: submit, listen, cancel, watch, drain."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from moe_core.engine.engine import Engine
from moe_core.engine.events import Delta, Done, Event, Failed
from moe_core.engine.grammar import GrammarCompiler
from moe_core.engine.loop import EngineLoop, EngineState
from moe_core.engine.samples import SampleShape
from moe_core.engine.sampling_params import SamplingParams
from moe_core.engine.score_edits import TokenMatcher
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
    """The events of one request's sequences, one for each answer, that its reader has not taken yet.

    A reader who takes text at most every `every_s` seconds is not woken for each token.
    """

    def __init__(self, every_s: float = 0.0) -> None:
        self._every_s = every_s
        self._due_at = 0.0
        # By the place among the answers; those that have ended stay.
        self.index_of: dict[int, int] = {}
        self._events: list[Event] = []
        self._arrived = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None

    def put(self, event: Event) -> None:
        """Add an event; on the asyncio thread."""
        self._events.append(event)
        left_s = self._due_at - time.monotonic() if self._every_s and isinstance(event, Delta) else 0.0
        if left_s <= 0.0:
            self._arrived.set()
        elif self._alarm is None:
            # What is kept back comes in time even when no other text follows for long.
            self._alarm = asyncio.get_running_loop().call_later(left_s, self._arrived.set)

    async def take(self) -> list[Event]:
        """All events since the last call, at least one."""
        await self._arrived.wait()
        self._arrived.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        events, self._events = self._events, []
        if any(isinstance(event, Delta) for event in events):
            # Not after the start alone: the first text is to come at once.
            self._due_at = time.monotonic() + self._every_s
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
        self.grammars: GrammarCompiler | None = None
        self.shape: SampleShape | None = None
        # The kind of device it computes on, as torch names it; "" until it is known.
        self.device = ""
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
        num_choices: int = 1,
        every_s: float = 0.0,
        matchers: Sequence[TokenMatcher] = (),
        **options: Any,
    ) -> Mailbox:
        """Queue a prompt for one or more answers and return where their events arrive.

        Text arrives at once, or gathered for `every_s` seconds. `options` and the errors are those of `Engine.submit`;
        all answers are queued, or none.
        """
        assert self.codec is not None
        mailbox = Mailbox(every_s)
        streams = [self.codec.stream() for _ in range(num_choices)]

        def on_engine(engine: Engine) -> None:
            chosen = [(stream, matchers[i] if matchers else None) for i, stream in enumerate(streams)]
            for index, sequence in enumerate(engine.submit_choices(prompt_ids, sampling, chosen, **options)):
                mailbox.index_of[sequence.id] = index
                # Here, and not after the await: the first event may arrive before the caller wakes.
                self._mailboxes[sequence.id] = mailbox

        future = self._engine_loop.call(on_engine)
        try:
            await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda _future: self._hand_over(self.cancel, mailbox))
            raise
        return mailbox

    def cancel(self, mailbox: Mailbox) -> None:
        """Forget a request whose reader went away; the engine frees its sequences at its next step."""
        open_ids = [one for one in mailbox.index_of if self._mailboxes.pop(one, None) is not None]
        if open_ids:
            self._engine_loop.call(lambda engine: engine.cancel(*open_ids))

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
        grammars = GrammarCompiler(codec, engine.end_ids)
        known = (codec, grammars, shape, engine.runner.device.type, engine.stats.snapshot(engine))
        self._hand_over(self._note_engine, *known)
        return engine

    def _hand_over(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._asyncio.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            logger.debug("nobody listens any more")

    # On the asyncio thread, handed over.

    def _note_engine(
        self, codec: TextCodec, grammars: GrammarCompiler, shape: SampleShape, device: str, snapshot: Snapshot
    ) -> None:
        self.codec, self.grammars, self.shape, self.device = codec, grammars, shape, device
        self.snapshot = snapshot

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
