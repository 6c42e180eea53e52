"""The smallest server of streamed completions, standard library only, so that a peer pays next to nothing for it.

Tokens go out as numbers; nothing is turned into text, which favours the peer a little.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Emit = Callable[[list[int]], None]


@dataclass(slots=True)
class Wanted:
    """One request: its prompt, how many tokens, and whom to tell."""

    prompt: list[int]
    new: int
    emit: Emit


class Worker(Protocol):
    """What computes, on a thread of its own."""

    def run(self, inbox: Inbox) -> None:
        """Serve for ever."""
        ...


class Inbox:
    """Requests on their way to the worker's thread."""

    def __init__(self) -> None:
        self._waiting: list[Wanted] = []
        self._changed = threading.Condition()

    def put(self, wanted: Wanted) -> None:
        """Add one."""
        with self._changed:
            self._waiting.append(wanted)
            self._changed.notify()

    def take(self, *, wait: bool) -> list[Wanted]:
        """All that wait; with `wait`, at least one."""
        with self._changed:
            while wait and not self._waiting:
                self._changed.wait()
            taken, self._waiting = self._waiting, []
            return taken


def serve(worker: Worker, port: int) -> None:
    """Answer on the port until killed."""
    inbox = Inbox()
    threading.Thread(target=worker.run, args=(inbox,), daemon=True).start()
    asyncio.run(_listen(inbox, port))


async def _listen(inbox: Inbox, port: int) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _answer(inbox, reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, limit=1 << 22)
    await server.serve_forever()


async def _answer(inbox: Inbox, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
    body = json.loads(await reader.readexactly(length))
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[list[int]]()
    inbox.put(Wanted(body["prompt"], body["max_tokens"], lambda ids: _tell(loop, pieces, ids)))
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    left = body["max_tokens"]
    while left > 0:
        ids = await pieces.get()
        left -= len(ids)
        writer.write(_event({"choices": [{"text": "", "token_ids": ids}]}))
        await writer.drain()
    writer.write(_event({"choices": [], "usage": {"completion_tokens": body["max_tokens"] - left}}))
    await writer.drain()


def _tell(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[list[int]], ids: list[int]) -> None:
    loop.call_soon_threadsafe(pieces.put_nowait, ids)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"
