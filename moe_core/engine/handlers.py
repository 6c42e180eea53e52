"""The engine's HTTP routes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from moe_core import strict_json
from moe_core.engine import samples, wire
from moe_core.engine.events import Delta, Event, Failed
from moe_core.engine.grammar import GrammarMatcher
from moe_core.engine.http_errors import Refusal, refusal_of
from moe_core.engine.loop import EngineState
from moe_core.engine.requests import GenerateBody, PromptBody, TokenizeBody, TraceBody
from moe_core.engine.service import EngineService, Mailbox, require_engine
from moe_core.engine.text import TextCodec
from moe_core.engine.trace import trace
from moe_core.errors import EngineBusy, EngineError, PromptTooLong, SpecError

SERVICE: web.AppKey[EngineService] = web.AppKey("service", EngineService)
MAX_BODY_BYTES = strict_json.MAX_BYTES
# Longer texts are tokenised on a thread, so that the other requests' tokens are not held up.
INLINE_CHARS = 16 * 1024
# A reader that takes nothing for so long is gone.
WRITE_TIMEOUT_S = 30.0
UNTIMED_BYTES = 32 << 10
# Four samples a second while something happens, one a second otherwise.
SAMPLE_EVERY_S = 0.25
IDLE_SAMPLE_EVERY_S = 1.0
B = TypeVar("B", bound=BaseModel)

routes = web.RouteTableDef()


@routes.get("/health")
async def health(request: web.Request) -> web.Response:
    """How the engine is; answers at every stage."""
    service = request.app[SERVICE]
    value: dict[str, Any] = {
        "state": str(service.state),
        "version": service.spec.version,
        "epoch": service.spec.epoch,
        "load_seconds": service.load_seconds,
        "device": service.device,
        "rss_bytes": _rss_bytes(),
        "running": 0,
        "waiting": 0,
        "kv_used": 0,
        "kv_total": 0,
        "decode_threads": 0,
    }
    if service.snapshot is not None:
        value |= samples.gauges(service.snapshot)
    if service.error is not None:
        value["error"] = {"code": type(service.error).__name__, "message": str(service.error)}
        service.failure_seen.set()
    return web.json_response(value, status=503 if service.state is EngineState.FAILED else 200)


@routes.post("/generate")
async def generate(request: web.Request) -> web.StreamResponse:
    """Stream the answer to one prompt as NDJSON; the client going away ends it at the next step."""
    service = request.app[SERVICE]
    body = await _body(request, GenerateBody)
    codec = _ready_codec(service)
    if body.epoch is not None and body.epoch != service.spec.epoch:
        raise Refusal(
            409, "stale_epoch", f"the request is for epoch {body.epoch}, this engine is {service.spec.epoch}"
        )
    with service.open_request():
        mailbox = await _submit(service, codec, body)
        try:
            return await _stream(request, service, codec, mailbox)
        finally:
            service.cancel(mailbox)


@routes.post("/tokenize")
async def tokenize(request: web.Request) -> web.Response:
    """The tokens of a text or a conversation."""
    service = request.app[SERVICE]
    body = await _body(request, TokenizeBody)
    codec = require_engine(service)
    if body.messages is not None:
        ids = await asyncio.to_thread(codec.format_chat, body.messages)
    else:
        ids = await asyncio.to_thread(codec.encode, body.text or "")
    return web.json_response({"ids": ids})


@routes.post("/trace")
async def routing_trace(request: web.Request) -> web.Response:
    """The experts that each token of a prompt goes to, layer by layer."""
    service = request.app[SERVICE]
    body = await _body(request, TraceBody)
    codec = _ready_codec(service)
    ids = await _prompt_ids(codec, body)
    domain = _domain(service, body.domain)
    with _naming_prompt(body):
        layers = await service.on_engine(lambda engine: trace(engine, ids, domain))
    assert service.shape is not None
    tokens = [{"id": token_id, "text": codec.token_text(token_id)} for token_id in ids]
    value = {
        "tokens": tokens,
        "domain": body.domain,
        "num_experts": service.shape.num_experts,
        "layers": layers,
    }
    return web.json_response(value)


@routes.get("/stats")
async def stats(request: web.Request) -> web.Response:
    """Totals since the start, exact at a step boundary."""
    service = request.app[SERVICE]
    require_engine(service)
    assert service.shape is not None
    now = await service.on_engine(lambda engine: engine.stats.snapshot(engine))
    value = samples.totals(service.shape, now)
    held = await service.on_engine(
        lambda engine: engine.runner.residency and engine.runner.residency.as_json()
    )
    return web.json_response(value if held is None else value | {"residency": held})


@routes.get("/samples")
async def routing_samples(request: web.Request) -> web.StreamResponse:
    """An endless stream of what happened in each window, until the engine drains.

    With `?cumulative=1` the counts are totals since the start, so that a reader who lost a line has lost nothing.
    """
    service = request.app[SERVICE]
    require_engine(service)
    cumulative = request.query.get("cumulative") == "1"
    response = await _start_ndjson(request)
    async for sample in _each_sample(service, cumulative):
        await _write(request, response, wire.line(sample))
    await response.write_eof()
    return response


async def _each_sample(service: EngineService, cumulative: bool) -> AsyncIterator[dict[str, Any]]:
    assert service.shape is not None
    shape = service.shape
    # At a step boundary of now, not the last one published: the reader may have seen totals since.
    last = await service.on_engine(lambda engine: engine.stats.snapshot(engine))
    cursor = samples.SampleCursor(service.shape, last)
    while not service.closing.is_set():
        last = await service.next_snapshot(last, IDLE_SAMPLE_EVERY_S)
        yield cursor.take(last) | (samples.totals(shape, last) if cumulative else {})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SAMPLE_EVERY_S):
                await service.closing.wait()
    # The engine's thread may have ended already; it published its totals when it came to rest.
    with contextlib.suppress(EngineError):
        last = await service.on_engine(lambda engine: engine.stats.snapshot(engine))
    last = service.snapshot if service.snapshot and service.snapshot.num_steps > last.num_steps else last
    yield cursor.take(last) | (samples.totals(shape, last) if cumulative else {})


async def _submit(service: EngineService, codec: TextCodec, body: GenerateBody) -> Mailbox:
    ids = await _prompt_ids(codec, body)
    matchers = await _matchers(service, body)
    try:
        with _naming_prompt(body):
            return await service.submit(
                ids,
                body.sampling(),
                num_choices=body.n,
                every_s=body.stream_interval_ms / 1000,
                matchers=matchers,
                request_id=body.request_id,
                domain=_domain(service, body.domain),
                cache_salt=body.cache_salt,
                record_routing=body.routed_experts,
                routing_start=body.routed_experts_start_len,
                fair_key=body.fair_key,
                priority=body.priority,
            )
    except EngineBusy as error:
        raise Refusal(429, "engine_busy", str(error), retry_after_s=service.retry_after_s) from error


async def _stream(
    request: web.Request, service: EngineService, codec: TextCodec, mailbox: Mailbox
) -> web.StreamResponse:
    # The status waits for a place in the batch, so that a request which gets none is refused with a plain 429.
    events = await mailbox.take()
    if isinstance(events[0], Failed):
        raise _refusal_of(events[0], service)
    response = await _start_ndjson(request)
    num_open = len(mailbox.index_of)
    while True:
        await _write(request, response, b"".join(_lines(service, codec, mailbox, events)))
        num_open -= sum(wire.is_last(event) for event in events)
        # One answer that fails ends the request; the others are cancelled with it.
        if not num_open or any(isinstance(event, Failed) for event in events):
            await response.write_eof()
            return response
        events = await mailbox.take()


def _lines(
    service: EngineService, codec: TextCodec, mailbox: Mailbox, events: list[Event]
) -> Iterator[bytes]:
    is_alone = len(mailbox.index_of) == 1
    for event in wire.merged(events):
        if is_alone and isinstance(event, Delta) and not event.logprobs:
            yield wire.plain_delta(event)
            continue
        value = wire.to_json(event, codec)
        index = mailbox.index_of[event.sequence_id]
        if value["type"] == "start":
            if index:
                continue
            value |= {"version": service.spec.version, "epoch": service.spec.epoch}
        if not is_alone:
            value["index"] = index
        yield wire.line(value)
        if value["type"] == "error":
            return


async def _matchers(service: EngineService, body: GenerateBody) -> list[GrammarMatcher]:
    """Grammars are compiled on a thread: the other requests' tokens are not held up."""
    if body.grammar is None:
        return []
    assert service.grammars is not None
    try:
        return await asyncio.to_thread(service.grammars.matchers, body.grammar, body.n)
    except SpecError as error:
        raise Refusal(400, "invalid_grammar", str(error), param="grammar") from error


def _refusal_of(failed: Failed, service: EngineService) -> Refusal:
    status = 429 if failed.code == "queue_timeout" else 503
    return Refusal(status, failed.code, failed.message, retry_after_s=service.retry_after_s)


async def _start_ndjson(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"}
    )
    response.enable_chunked_encoding()
    await response.prepare(request)
    return response


async def _write(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Write to a reader, or give up on one that takes nothing for too long."""
    transport = request.transport
    if transport is not None and len(data) < UNTIMED_BYTES and not transport.get_write_buffer_size():
        # It fits what the transport takes without waiting; a timer would cost as much as the write.
        await response.write(data)
        return
    async with asyncio.timeout(WRITE_TIMEOUT_S):
        await response.write(data)


async def _body(request: web.Request, kind: type[B]) -> B:
    value = strict_json.loads(await request.read(), max_bytes=MAX_BODY_BYTES)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        place = error.errors(include_url=False, include_input=False, include_context=False)[0]["loc"]
        param = str(place[0]) if place else None
        raise Refusal(400, "invalid_request", _sentences(error), param=param) from None


def _sentences(error: ValidationError) -> str:
    details = error.errors(include_url=False, include_input=False, include_context=False)[:8]
    return "; ".join(
        f"{'.'.join(str(step) for step in item['loc']) or 'body'}: {item['msg']}" for item in details
    )


def _ready_codec(service: EngineService) -> TextCodec:
    if service.accepts and service.codec is not None:
        return service.codec
    code = "draining" if service.state is EngineState.DRAINING else "not_ready"
    raise Refusal(503, code, f"the engine is {service.state}", retry_after_s=1)


async def _prompt_ids(codec: TextCodec, body: PromptBody) -> list[int]:
    if body.prompt_ids is not None:
        return body.prompt_ids
    if body.num_chars > INLINE_CHARS:
        return await asyncio.to_thread(_encode, codec, body)
    return _encode(codec, body)


@contextlib.contextmanager
def _naming_prompt(body: PromptBody) -> Iterator[None]:
    """What is wrong with a prompt is wrong with the field that it came in."""
    try:
        yield
    except (PromptTooLong, SpecError) as error:
        refusal = refusal_of(error)
        assert refusal is not None
        if refusal.param == "prompt":
            refusal.param = body.prompt_field
        raise refusal from error


def _encode(codec: TextCodec, body: PromptBody) -> list[int]:
    if body.messages is not None:
        return codec.format_chat(body.messages)
    return codec.encode(body.prompt or "")


def _domain(service: EngineService, code: str | None) -> int:
    if code is None:
        return -1
    domain = service.routing.index_of(code)
    if domain < 0:
        known = ", ".join(service.routing.codes) or "none"
        words = f"this deployment has no domain {code!r}; it has: {known}"
        raise Refusal(400, "unknown_domain", words, param="domain")
    return domain


def _rss_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
