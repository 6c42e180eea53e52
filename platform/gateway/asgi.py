"""The raw ASGI door for /v1 and /v2."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any


class Gateway:
    """The gateway application; owns its pools between start and stop."""

    async def start(self) -> None:
        """Open the pools."""

    async def stop(self) -> None:
        """Close the pools."""

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})


application = Gateway()
