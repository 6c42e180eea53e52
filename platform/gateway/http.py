"""The bare ASGI side: reading a bounded body, writing answers, noticing that the client has gone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from gateway.errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

MAX_BODY_BYTES = 4 * 2**20
# A refused body is read to its end up to here: a client that is still sending would lose the answer.
MAX_DISCARDED_BYTES = 32 * 2**20
BODY_TIMEOUT_S = 30.0
# A reader that takes nothing for so long is gone.
WRITE_TIMEOUT_S = 30.0
JSON_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)
SSE_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
)


class ClientGone(Exception):
    """The client closed the connection, or stopped reading."""


class Call:
    """One HTTP request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.request_id = request_id
        self.headers: list[Header] = [(b"x-request-id", request_id.encode())]
        self.started = False
        self.finished = False
        # When the part that is being written was begun.
        self._writing_since: float | None = None
        self._receive = receive
        self._send = send
        self._names = dict(reversed(scope["headers"]))

    def header(self, name: bytes) -> str:
        """A request header as text; "" when it was not sent."""
        return self._names.get(name, b"").decode("latin-1")

    async def body(self) -> bytes:
        """The whole body, counted while it arrives.

        Raises:
            ApiError: 413 over the limit, 408 when it does not come.
            ClientGone: when it breaks off.
        """
        announced = self.header(b"content-length")
        if announced and (not announced.isdigit() or int(announced) > MAX_DISCARDED_BYTES):
            raise _too_large()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await self._read_body()
        except TimeoutError:
            raise ApiError(408, "The body did not arrive in time.", code="request_timeout") from None

    async def _read_body(self) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        while more and size <= MAX_DISCARDED_BYTES:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > MAX_BODY_BYTES:
                parts.clear()
            else:
                parts.append(part)
            more = message.get("more_body", False)
        if size > MAX_BODY_BYTES:
            raise _too_large()
        return b"".join(parts)

    async def gone(self) -> None:
        """Return when the client has closed the connection, or has not read what `write_part` sends for too long; the body
        must have been read."""
        receiving = asyncio.ensure_future(self._disconnected())
        try:
            while not receiving.done() and not self._is_stuck:
                await asyncio.wait({receiving}, timeout=WRITE_TIMEOUT_S / 4)
        finally:
            receiving.cancel()

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    @property
    def _is_stuck(self) -> bool:
        since = self._writing_since
        return since is not None and time.monotonic() - since > WRITE_TIMEOUT_S

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Send the status line."""
        self.started = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [*headers, *self.headers]}
        )

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body; waits while the client reads slowly.

        Raises:
            ClientGone: when it does not read at all.
        """
        self.finished = not more
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise ClientGone from None

    async def write_part(self, data: bytes) -> None:
        """Send a part of a stream whose reader `gone` watches: a timer for each would cost more than the part."""
        self._writing_since = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._writing_since = None

    async def answer(self, status: int, value: Any, headers: Iterable[Header] = ()) -> None:
        """Send a whole JSON answer."""
        await self.answer_bytes(status, json.dumps(value, ensure_ascii=False).encode(), headers)

    async def answer_bytes(self, status: int, body: bytes, headers: Iterable[Header] = ()) -> None:
        """Send a whole answer that is JSON already."""
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, [*JSON_HEADERS, length, *headers])
        await self.write(b"" if self.method == "HEAD" else body, more=False)

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error, or end a stream with one."""
        if self.started:
            await self.write(b"data: " + error.as_json() + b"\n\n", more=False)
            return
        wait = [] if error.retry_after_s is None else [(b"retry-after", str(error.retry_after_s).encode())]
        await self.answer_bytes(error.status, error.as_json(), [*error.headers, *wait])


def _too_large() -> ApiError:
    # The rest of the body is not read, so the connection cannot be used again.
    return ApiError(
        413,
        f"The body may hold {MAX_BODY_BYTES} bytes at most.",
        code="body_too_large",
        headers=((b"connection", b"close"),),
    )
