"""From a body to an answer: choose a replica, reserve, stream, settle."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from gateway import engines, quota
from gateway.answers import Kind, Shaper
from gateway.bodies import Body
from gateway.callers import Callers, Principal
from gateway.database import Database
from gateway.directory import Directory, ReplicaAddress, Target
from gateway.engines import EngineAway, Stream, event_of, plain_delta
from gateway.errors import ApiError, outage, too_many, unauthenticated, unavailable
from gateway.http import SSE_HEADERS, Call, Header
from gateway.meter import Meter, Used

RECHECK_S = 2.0
# How long text is gathered, and how late the count of tokens may be of an answer that is cut off. Nobody reads more than
# fifty frames a second, and each costs three processes a turn; what is not streamed is seen at its end alone.
STREAM_MS, GATHER_MS = 20, 250
TRIES = 4


class Slots:
    """How many requests of each key run in this process."""

    def __init__(self) -> None:
        self._running: dict[str, int] = {}

    @contextlib.contextmanager
    def held(self, principal: Principal) -> Any:
        """Hold one slot.

        Raises:
            ApiError: 429 when the key has none left.
        """
        running = self._running.get(principal.key, 0)
        if running >= principal.max_concurrent:
            raise too_many(
                f"This key may run {principal.max_concurrent} requests at once, and does.",
                code="concurrency_limit",
                retry_after_s=1,
            )
        self._running[principal.key] = running + 1
        try:
            yield
        finally:
            left = self._running[principal.key] - 1
            if left:
                self._running[principal.key] = left
            else:
                del self._running[principal.key]


class Completions:
    """Answers both kinds of completion."""

    def __init__(self, database: Database, callers: Callers, directory: Directory, meter: Meter) -> None:
        self.database, self.callers, self.directory = database, callers, directory
        self.meter = meter
        self.slots = Slots()

    async def answer(self, call: Call, principal: Principal, body: Body, kind: Kind) -> None:
        """Answer one request to its end, and note what it used or why nobody answered."""
        used = Used(principal.team_id, principal.token_id, call.request_id, call.path, at=time.time())
        with self._noted(used):
            target = await self.directory.find(principal.team_id, body.model)
            used.deployment_id, used.version_id = target.id, target.version_id or 0
            target.must_serve()
            domain = target.checked_domain(body.domain or call.header(b"x-turnout-domain") or None)
            used.domain = domain or ""
            await self._serve(call, principal, target, body, kind, domain, used)

    @contextlib.contextmanager
    def _noted(self, used: Used) -> Iterator[None]:
        """Note a request that was begun or that nobody could take; one that broke a rule costs and counts nothing."""
        began = time.monotonic()
        try:
            yield
        except ApiError as error:
            if not used.is_begun:
                used.finish_reason = outage(error)
            raise
        except asyncio.CancelledError:
            used.finish_reason = "cancelled"
            raise
        except BaseException:
            used.finish_reason = used.finish_reason or "error"
            raise
        finally:
            if used.is_begun and not used.finish_reason:
                used.finish_reason = "error"
            if used.finish_reason:
                used.total_ms = round((time.monotonic() - began) * 1000, 2)
                self.meter.note(used)

    async def _serve(
        self, call: Call, principal: Principal, target: Target, body: Body, kind: Kind,
        domain: str | None, used: Used,
    ) -> None:  # fmt: skip
        with self.slots.held(principal):
            request = {
                **body.for_engine(),
                "domain": domain,
                "request_id": call.request_id,
                # Nobody can learn by timing what another team has asked.
                "cache_salt": f"team:{principal.team_id}",
                # Keys share an engine evenly, however many requests each sends.
                "fair_key": principal.key,
            }
            request["stream_interval_ms"] = STREAM_MS if body.stream else GATHER_MS
            try:
                async with self._quota(principal, target, request, used):
                    await self._answer(call, principal, target, body, kind, request, used)
            except ApiError as error:
                error.param = body.field_of(error.param)
                raise

    @contextlib.asynccontextmanager
    async def _quota(
        self, principal: Principal, target: Target, request: dict[str, Any], used: Used
    ) -> AsyncIterator[None]:
        """Reserve what a limited key may use; count the prompt exactly first."""
        if principal.monthly_token_limit is None or principal.token_id is None:
            yield
            return
        ids = await self._prompt_ids(principal, target, request)
        for name in ("messages", "prompt"):
            request.pop(name, None)
        request["prompt_ids"] = ids
        await quota.reserve(
            self.database, principal, used.request_id, len(ids) + request["max_tokens"] * request["n"]
        )
        try:
            yield
        finally:
            spent = used.prompt_tokens + used.completion_tokens
            with contextlib.suppress(ApiError):
                await asyncio.shield(quota.settle(self.database, used.request_id, spent))

    async def _prompt_ids(self, principal: Principal, target: Target, request: dict[str, Any]) -> list[int]:
        if "prompt_ids" in request:
            return list(request["prompt_ids"])
        text = {"messages": request["messages"]} if "messages" in request else {"text": request["prompt"]}
        tried: set[tuple[int, int]] = set()
        for _ in range(TRIES):
            replica, target = await self._next_replica(principal, target, tried)
            try:
                ids: list[int] = (await engines.ask(replica, "/tokenize", text))["ids"]
                return ids
            except EngineAway:
                tried.add((replica.id, replica.epoch))
                self.directory.forget(principal.team_id, target.name)
        raise unavailable(f"The deployment {target.name!r} has no replica that is ready.", code="not_ready")

    async def _next_replica(
        self, principal: Principal, target: Target, tried: set[tuple[int, int]]
    ) -> tuple[ReplicaAddress, Target]:
        if tried:
            target = await self.directory.find(principal.team_id, target.name)
        replica = self.directory.choose(target, tried)
        if replica is None:
            raise unavailable(
                f"The deployment {target.name!r} has no replica that is ready.", code="not_ready"
            )
        return replica, target

    async def _answer(
        self, call: Call, principal: Principal, target: Target, body: Body, kind: Kind,
        request: dict[str, Any], used: Used,
    ) -> None:  # fmt: skip
        tried: set[tuple[int, int]] = set()
        for _ in range(TRIES):
            replica, target = await self._next_replica(principal, target, tried)
            self.directory.in_flight[replica.id] += 1
            try:
                stream = await engines.generate(replica, request)
            except EngineAway:
                tried.add((replica.id, replica.epoch))
                self.directory.forget(principal.team_id, target.name)
                self._leave(replica)
                continue
            except BaseException:
                self._leave(replica)
                raise
            used.is_begun, used.version_id = True, target.version_id or 0
            version = f"{target.version} r{target.revision}"
            call.headers.append((b"x-turnout-version", _latin(version)))
            shaper = Shaper(kind, call.request_id, target.name, version, body.wants_usage, body.num_choices)
            try:
                await self._tell(call, principal, stream, shaper, bool(body.stream), used)
            finally:
                stream.close()
                self._leave(replica)
            return
        raise unavailable(f"The deployment {target.name!r} has no replica that is ready.", code="not_ready")

    def _leave(self, replica: ReplicaAddress) -> None:
        self.directory.in_flight[replica.id] -= 1
        if self.directory.in_flight[replica.id] <= 0:
            del self.directory.in_flight[replica.id]

    async def _tell(
        self, call: Call, principal: Principal, stream: Stream, shaper: Shaper, streams: bool, used: Used
    ) -> None:
        async with self._fenced(call, principal, stream) as fence:
            try:
                async for line in stream.lines():
                    if streams and (plain := plain_delta(line)):
                        used.completion_tokens += plain[1]
                        if data := shaper.plain(plain[0]):
                            await call.write_part(data)
                    elif await self._line(call, event_of(line), shaper, streams, used):
                        return
            except ApiError:
                if fence.is_set():
                    used.finish_reason = "revoked"
                    raise unauthenticated("This API key was revoked while the answer ran.") from None
                raise

    @contextlib.asynccontextmanager
    async def _fenced(self, call: Call, principal: Principal, stream: Stream) -> AsyncIterator[asyncio.Event]:
        """Hang up on the engine soon after the caller lost the right to ask."""
        lost = asyncio.Event()

        async def watch() -> None:
            while True:
                await asyncio.sleep(RECHECK_S)
                if not await self.callers.still(call, principal):
                    lost.set()
                    stream.close()
                    return

        task = asyncio.create_task(watch())
        try:
            yield lost
        finally:
            task.cancel()

    async def _line(
        self, call: Call, line: dict[str, Any], shaper: Shaper, streams: bool, used: Used
    ) -> bool:
        """Pass one event on; True after the last."""
        if line["type"] == "start":
            used.prompt_tokens = line["prompt_tokens"]
            if streams:
                await call.start(200, SSE_HEADERS)
                if first := shaper.opening():
                    await call.write_part(first)
            return False
        if line["type"] == "delta":
            used.completion_tokens += len(line["token_ids"])
            if not streams:
                shaper.gather(line)
            elif data := shaper.delta(line):
                await call.write_part(data)
            return False
        used.prompt_tokens = line["usage"]["prompt_tokens"]
        used.finish_reason = line["finish_reason"]
        if line.get("index", 0) == 0:
            used.first_token_ms = line["timing"].get("first_token_ms")
        if streams:
            data = shaper.ended(line)
            await call.write(data, more=not shaper.is_complete)
        else:
            shaper.gather(line)
            if shaper.is_complete:
                await call.answer(200, shaper.whole(), _timing(used))
        return shaper.is_complete


def _timing(used: Used) -> list[Header]:
    first = used.first_token_ms
    return [] if first is None else [(b"x-turnout-first-token-ms", str(first).encode())]


def _latin(text: str) -> bytes:
    """A header value: what ASCII cannot say is left out."""
    return text.encode("ascii", "replace")
