"""Live sockets as a browser opens them, on a real uvicorn."""

from __future__ import annotations

import json
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.apps.gateway.served import Instance


class Board:
    """A browser's side of a live feed: it keeps the newest picture and asks again after a gap."""

    def __init__(self, link: ClientConnection) -> None:
        self.link = link
        self.seq: int | None = None
        self.newest: dict[str, Any] = {}

    async def next(self) -> dict[str, Any]:
        """The next message that is no ping."""
        while True:
            message = json.loads(await self.link.recv())
            if message["type"] == "ping":
                continue
            if message["type"] == "event" and self.seq is not None and message["seq"] > self.seq + 1:
                await self.link.send('{"type":"resync"}')
            self.seq, self.newest = message["seq"], message
            return message


def open_socket(instance: Instance, path: str, *, cookie: str = "", origin: str | None = None) -> connect:
    """Connect as a page of ours would; `origin` stands for another page."""
    headers = {"Cookie": cookie} if cookie else {}
    return connect(
        f"ws://127.0.0.1:{instance.web.port}{path}",
        additional_headers=headers,
        origin=instance.web.address if origin is None else origin,  # type: ignore[arg-type]
        open_timeout=60,
        ping_interval=None,
    )
