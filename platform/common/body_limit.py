"""A byte-counting limit in front of Django: what a Content-Length says is not what a client sends."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from django.conf import settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
# What takes files; everything else is small. The handlers behind these stream to disk.
UPLOADS = re.compile(r"/api/v1/(uploads|corpora/\d+/files)/|/(data|models)/upload/")


class BodyLimit:
    """ASGI middleware: 413 for a body over the limit, 411 for one without a length, in JSON, before Django sees it."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        limit = settings.MAX_UPLOAD_BYTES if UPLOADS.match(scope["path"]) else settings.MAX_BODY_BYTES
        length = headers.get(b"content-length", b"")
        if b"transfer-encoding" in headers and not length:
            await refuse(
                send,
                411,
                "length_required",
                "Send a Content-Length header; chunked bodies are not taken here.",
            )
            return
        if length and (not length.isdigit() or int(length) > limit):
            await refuse(send, 413, "too_large", f"The body may hold {limit} bytes at most.")
            return
        await self.app(scope, counted(receive, limit), send)


def counted(receive: Receive, limit: int) -> Receive:
    """Count the bytes that really arrive and cut off what is over the limit."""
    seen = 0

    async def receive_counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > limit else message

    return receive_counted


async def refuse(send: Send, status: int, code: str, detail: str) -> None:
    """Answer with problem+json."""
    body = json.dumps(
        {"type": "about:blank", "title": code, "status": status, "detail": detail, "code": code}
    ).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
