"""One request to an engine, on a connection of its own to its unix socket: HTTP/1.1, the answer in parts as they come.

Written out because each token passes here: a general client's parser, buffer and timer take longer than all else that the
gateway does for it.
"""

from __future__ import annotations

import asyncio
from typing import cast

from gateway.framing import MAX_HEAD_BYTES, Body, Head, WireError, head_of

CONNECT_S = 2.0
# The longest silence: waiting for a place in the batch, or one long step.
SILENCE_S = 60.0
TOTAL_S = 900.0
# Beyond it the engine waits until what has come was taken.
HIGH_WATER_BYTES = 256 << 10


class Wire(asyncio.Protocol):
    """One exchange; belongs to the event loop that it was made in."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._head: asyncio.Future[Head] = self._loop.create_future()
        self._head_bytes = b""
        self._body: Body | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._is_paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._transport: asyncio.Transport | None = None
        self._born = self._heard_at = self._loop.time()
        # One timer for the exchange, and not one for each part.
        self._timer = self._loop.call_later(SILENCE_S, self._look)

    @classmethod
    async def opened(cls, address: str) -> Wire:
        """Connect to a unix socket.

        Raises:
            OSError: when nobody listens there; TimeoutError, which is one, when it takes too long.
        """
        loop, wire = asyncio.get_running_loop(), cls()
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_unix_connection(lambda: wire, address)
        except BaseException:
            wire.close()
            raise
        return wire

    async def post(self, path: str, body: bytes) -> Head:
        """Send a body of JSON and wait for the head of the answer.

        Raises:
            OSError: when the engine goes away or is silent for too long.
            WireError: when it speaks otherwise than it should.
        """
        assert self._transport is not None
        head = (
            f"POST {path} HTTP/1.1\r\nHost: engine\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        return await self._head

    async def part(self) -> bytes:
        """All of the body that has come since the last call, at least a byte; nothing after its end.

        Raises:
            OSError: when the engine goes away or is silent for too long.
            WireError: when it speaks otherwise than it should.
        """
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self._body is not None and self._body.is_complete:
                return b""
            self._waiter = self._loop.create_future()
            await self._waiter
        parts, self._parts, self._size = self._parts, [], 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._heard_at = self._loop.time()
            self._transport.resume_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def whole(self) -> bytes:
        """The rest of the body."""
        parts = []
        while part := await self.part():
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        """Hang up."""
        self._timer.cancel()
        self._head.cancel()
        if self._transport is not None:
            self._transport.abort()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The engine listens."""
        # uvloop's are no subclass.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self._heard_at = self._loop.time()
        try:
            if self._body is None:
                data = self._read_head(data)
            part = self._body.feed(data) if self._body is not None else b""
        except WireError as error:
            self._fail(error)
            return
        if part:
            self._parts.append(part)
            self._size += len(part)
            if self._size > HIGH_WATER_BYTES and not self._is_paused and self._transport is not None:
                self._is_paused = True
                self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine hung up, or we did."""
        self._timer.cancel()
        if self._body is None or not self._body.is_complete:
            self._fail(exc or ConnectionResetError("the engine hung up"))

    def _read_head(self, data: bytes) -> bytes:
        """Read the head when it is whole; what comes after it."""
        found, end, rest = (self._head_bytes + data).partition(b"\r\n\r\n")
        if not end:
            if len(found) > MAX_HEAD_BYTES:
                raise WireError("a head is too long")
            self._head_bytes = found
            return b""
        head = head_of(found)
        self._body = Body(head.headers)
        if not self._head.done():
            self._head.set_result(head)
        return rest

    def _fail(self, error: Exception) -> None:
        self._timer.cancel()
        self._error = self._error or error
        if not self._head.done():
            self._head.set_exception(error)
        self._wake()
        if self._transport is not None:
            self._transport.abort()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _look(self) -> None:
        now = self._loop.time()
        if self._is_paused:
            # It is us who are slow.
            self._heard_at = now
        due = min(self._heard_at + SILENCE_S, self._born + TOTAL_S)
        if now < due:
            self._timer = self._loop.call_later(due - now, self._look)
        else:
            self._fail(
                TimeoutError("the engine is silent" if now < self._born + TOTAL_S else "it took too long")
            )
