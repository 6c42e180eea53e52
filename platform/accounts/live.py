"""The base of every live socket: permission first, a snapshot, then frames; permission again every few seconds.

    class JobConsumer(LiveSocket):
        role = Role.VIEWER
        async def topic(self) -> str: ...            # raise NotFound for what is not the caller's
        async def snapshot(self) -> dict: ...        # holds "seq": frames up to it are in the snapshot

Frames are JSON texts `{"type": …, "seq": n, …}` or binary. A client that sees a gap sends {"type":"resync"}; one that
wants to know the server's clock sends {"type":"ping","t":<its own>} and gets {"type":"pong","t":…,"server_ms":…}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from typing import Any, ClassVar

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth import get_user, get_user_model
from django.contrib.sessions.backends.db import SessionStore
from django.http import HttpRequest

from accounts.access import Role
from accounts.caller import Caller
from accounts.middleware import TEAM_KEY
from accounts.selectors import caller_of
from common.errors import DomainError
from common.live import Subscription, hub

RECHECK_S = 4.0
# An idle feed and a dead one look alike to a browser, so an idle one says that it lives.
PING_S = 8.0
REFUSED, GONE, SLOW = 4403, 4404, 4408
MAX_SAID = 200


class LiveSocket(AsyncWebsocketConsumer):
    """One person watching one thing."""

    role: ClassVar[Role] = Role.VIEWER
    caller: Caller

    async def topic(self) -> str:
        """Return the live topic of this socket's thing, which must belong to `self.caller.team`."""
        raise NotImplementedError

    async def snapshot(self) -> dict[str, Any]:
        """Return the whole state, with the `seq` of the last frame that it holds."""
        raise NotImplementedError

    async def connect(self) -> None:
        """Refuse strangers, then accept and stream."""
        self.tasks: list[asyncio.Task[None]] = []
        caller = await self.find_caller()
        if caller is None or not caller.role.covers(self.role):
            await self.close(code=REFUSED)
            return
        self.caller = caller
        try:
            topic = await self.topic()
        except DomainError:
            await self.close(code=GONE)
            return
        await self.accept()
        work = (self.stream(topic), self.recheck(), self.ping())
        self.tasks = [asyncio.create_task(each) for each in work]

    async def disconnect(self, code: int) -> None:
        """Stop this socket's tasks."""
        for task in self.tasks:
            task.cancel()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """The two things that a client may say: send the snapshot again, and what time is it."""
        if not text_data or len(text_data) >= MAX_SAID:
            return
        with contextlib.suppress(ValueError, RecursionError):
            said = json.loads(text_data)
            if said == {"type": "resync"}:
                await self.send_snapshot()
            elif (pong := pong_to(said)) is not None:
                await self.send(text_data=json.dumps(pong))

    async def stream(self, topic: str) -> None:
        """Send the snapshot, then every frame; after a gap the snapshot again."""
        async with hub.watching(topic) as subscription:
            await self.send_snapshot()
            await self.forward(subscription)

    async def forward(self, subscription: Subscription) -> None:
        """Pass frames on for ever."""
        seen = subscription.missed
        while True:
            if subscription.missed != seen:
                seen = subscription.missed
                await self.send_snapshot()
            if not subscription.frames:
                subscription.bell.clear()
                await subscription.bell.wait()
                continue
            frame = subscription.frames.popleft()
            if frame[:1] == b"{":
                await self.send(text_data=frame.decode())
            else:
                await self.send(bytes_data=frame)

    async def send_snapshot(self) -> None:
        """Send the whole state."""
        await self.send(text_data=json.dumps({"type": "snapshot", **await self.snapshot()}))

    async def ping(self) -> None:
        """Say now and then that the feed lives."""
        while True:
            await asyncio.sleep(PING_S)
            await self.send(text_data='{"type": "ping"}')

    async def recheck(self) -> None:
        """Close the socket soon after its person lost the right to watch."""
        while True:
            await asyncio.sleep(RECHECK_S)
            caller = await self.find_caller()
            if caller is None or caller.team != self.caller.team or not caller.role.covers(self.role):
                await self.close(code=REFUSED)
                return

    @database_sync_to_async
    def find_caller(self) -> Caller | None:
        """Return the session's person as a caller, read from the database each time."""
        fresh = SessionStore(self.scope["session"].session_key)
        request = HttpRequest()
        request.session = fresh
        user = get_user(request)
        if not isinstance(user, get_user_model()) or not user.is_active:
            return None
        return caller_of(user, fresh.get(TEAM_KEY))


def pong_to(said: Any) -> dict[str, Any] | None:
    """The answer to a client's ping: its own time back, beside the server's; None for what is no ping.

    The server's clock showed it within the round trip, so the client learns that clock and need not trust its own.
    """
    if not isinstance(said, dict) or said.keys() != {"type", "t"} or said["type"] != "ping":
        return None
    told = said["t"]
    if isinstance(told, bool) or not isinstance(told, (int, float)) or not math.isfinite(told):
        return None
    return {"type": "pong", "t": told, "server_ms": round(time.time() * 1000, 1)}
