"""Speaking to engines: a request on a connection of its own to their unix sockets, and what their answers mean."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from gateway.directory import ReplicaAddress
from gateway.errors import ApiError, from_engine, unavailable
from gateway.framing import Head, WireError
from gateway.wire import Wire

MAX_LINE_BYTES = 32 << 20
# What an engine says before it has done anything: another replica may take the request.
ELSEWHERE = ("not_ready", "draining", "stale_epoch")
# As `moe_core.engine.wire` writes them.
DELTA, TOKENS = b'{"type":"delta","text":', b',"token_ids":['
_decode = json.JSONDecoder().decode
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class EngineAway(Exception):
    """This replica cannot take the request; nothing was begun."""


class Stream:
    """An engine's answer, line by line."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the events to the last one, each as its line: see `event_of` and `plain_delta`.

        Raises:
            ApiError: when the engine dies or falls silent.
        """
        rest = b""
        try:
            while data := await self._wire.part():
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    yield line
                if len(rest) > MAX_LINE_BYTES:
                    raise _unreadable()
        except (WireError, OSError) as error:
            raise _lost(error) from error
        raise unavailable("The engine ended before the answer was complete.", code="engine_lost")

    def close(self) -> None:
        """Hang up; the engine ends the sequence at its next step."""
        self._wire.close()


async def generate(replica: ReplicaAddress, body: dict[str, Any]) -> Stream:
    """Begin an answer.

    Raises:
        EngineAway: when another replica should be asked.
        ApiError: when the request is at fault, or the engine is full.
    """
    return Stream(await _posted(replica, "/generate", {**body, "epoch": replica.epoch}))


async def ask(replica: ReplicaAddress, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask for one JSON object; raises as `generate` does."""
    wire = await _posted(replica, path, body)
    try:
        value = json.loads(await wire.whole())
    except (WireError, OSError, ValueError) as error:
        raise _lost(error) from error
    finally:
        wire.close()
    if not isinstance(value, dict):
        raise _unreadable()
    return value


async def _posted(replica: ReplicaAddress, path: str, body: dict[str, Any]) -> Wire:
    """An exchange whose answer is on its way: the engine has said that it takes the request."""
    try:
        wire = await Wire.opened(replica.address)
    except TimeoutError as error:
        raise _lost(error) from error
    except OSError as error:
        raise EngineAway(str(error)) from error
    try:
        head = await wire.post(path, _encode(body).encode())
        if head.status == 200:
            return wire
        raise _refusal(head, await wire.whole())
    except (WireError, OSError) as error:
        wire.close()
        raise _lost(error) from error
    except BaseException:
        wire.close()
        raise


def _refusal(head: Head, body: bytes) -> ApiError | EngineAway:
    try:
        error = json.loads(body)["error"]
        code, message, param = str(error["code"]), str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        return _unreadable()
    if code in ELSEWHERE:
        return EngineAway(message)
    wait = head.headers.get("retry-after", "")
    retry_after_s = int(wait) if wait.isdigit() else None
    named = param if isinstance(param, str) else None
    return from_engine(head.status, code, message, retry_after_s, param=named)


def event_of(line: bytes) -> dict[str, Any]:
    """The event in a line.

    Raises:
        ApiError: when the engine says an error.
    """
    value: dict[str, Any] = _decode(line.decode())
    if value["type"] == "error":
        raise from_engine(503, str(value["code"]), str(value["message"]))
    return value


def plain_delta(line: bytes) -> tuple[bytes, int] | None:
    """The text of a delta, as JSON, and the number of its tokens; None for an event that says anything else.

    Most lines are such, and are cut and not read: within a text the quotes are escaped, so that what is looked for is not
    found there.
    """
    if not line.startswith(DELTA):
        return None
    text, found, ids = line[len(DELTA) :].rpartition(TOKENS)
    if not found or not ids.endswith(b"]}") or not ids[:-2].replace(b",", b"").isdigit():
        return None
    return text, ids.count(b",") + 1


def _unreadable() -> ApiError:
    return unavailable("The engine's answer could not be read.", code="engine_lost")


def _lost(error: BaseException) -> ApiError:
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return ApiError(
            504,
            "The engine did not answer in time.",
            type="server_error",
            code="engine_timeout",
            retry_after_s=2,
        )
    return unavailable("The engine ended before the answer was complete.", code="engine_lost")
