"""A client that streams completions over HTTP/1.1: TCP or a unix socket, standard library only, cheap for the machine.

Three dialects are spoken: OpenAI's (`/v1/completions`), llama.cpp's own (`/completion`) and that of our engine's socket
(`/generate`, a line of JSON for each event). Prompts are tokens in all of them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Dialect = Literal["openai", "llama", "engine"]
PATHS: dict[Dialect, str] = {"openai": "/v1/completions", "llama": "/completion", "engine": "/generate"}
PATIENCE_S = 600.0


class ClientError(Exception):
    """A server answered otherwise than it should."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a contestant listens, and how it is spoken to."""

    dialect: Dialect
    port: int = 0
    socket_path: str = ""
    model: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def body(self, prompt: list[int], new: int) -> bytes:
        """A greedy request of exactly `new` tokens."""
        if self.dialect == "engine":
            told: dict[str, Any] = {"prompt_ids": prompt, "max_tokens": new}
        elif self.dialect == "llama":
            told = {"prompt": prompt, "n_predict": new, "stream": True, "cache_prompt": False}
            told |= {"return_tokens": True}
        else:
            told = {"model": self.model, "prompt": prompt, "max_tokens": new, "stream": True}
            told |= {"stream_options": {"include_usage": True}}
        return json.dumps({**told, "temperature": 0, "ignore_eos": True, **self.extra}).encode()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection."""
        if self.socket_path:
            return await asyncio.open_unix_connection(self.socket_path)
        return await asyncio.open_connection("127.0.0.1", self.port)


@dataclass(slots=True)
class Answer:
    """What came, and when: seconds after the request was sent."""

    first_s: float = 0.0
    last_s: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    num_tokens: int = 0


async def complete(
    endpoint: Endpoint, prompt: list[int], new: int, on_first: Callable[[], None] | None = None
) -> Answer:
    """Stream one answer to its end.

    Raises:
        ClientError: when it is refused, or has not the number of tokens that was asked for.
    """
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await endpoint.connect()
        try:
            answer = Answer()
            began = time.perf_counter()
            writer.write(request(PATHS[endpoint.dialect], endpoint.body(prompt, new), endpoint.headers))
            async for event in _events(reader, endpoint.dialect):
                _note(answer, event, endpoint.dialect)
                if (answer.text or answer.token_ids) and not answer.first_s:
                    answer.first_s = time.perf_counter() - began
                    if on_first:
                        on_first()
            answer.last_s = time.perf_counter() - began
        finally:
            writer.close()
    answer.num_tokens = answer.num_tokens or len(answer.token_ids)
    if answer.num_tokens != new:
        raise ClientError(f"{new} tokens were asked for, {answer.num_tokens} came: {answer.text[:200]!r}")
    return answer


async def together(endpoint: Endpoint, prompts: list[list[int]], new: int) -> list[Answer]:
    """All of them at once."""
    return list(await asyncio.gather(*(complete(endpoint, prompt, new) for prompt in prompts)))


def request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """The bytes of a POST that closes its connection."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        "Content-Type: application/json",
    ]
    lines += [f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _events(reader: asyncio.StreamReader, dialect: Dialect) -> AsyncIterator[dict[str, Any]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    if " 200 " not in head.split("\r\n", 1)[0]:
        raise ClientError(f"{head.splitlines()[0]}: {(await reader.read(2000)).decode(errors='replace')}")
    chunked, rest = "transfer-encoding: chunked" in head, b""
    async for piece in _chunks(reader) if chunked else _pieces(reader):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.strip() if dialect == "engine" else line.strip().removeprefix(b"data:").strip()
            if data.startswith(b"{"):
                yield json.loads(data)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _pieces(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(65_536):
        yield piece


def _note(answer: Answer, event: dict[str, Any], dialect: Dialect) -> None:
    if "error" in event or event.get("type") == "error":
        raise ClientError(f"the answer broke: {event}")
    if dialect == "engine":
        if event["type"] == "delta":
            answer.token_ids += event["token_ids"]
            answer.text += event["text"]
        return
    if dialect == "llama":
        answer.text += event.get("content", "")
        answer.token_ids += [] if event.get("stop") else event.get("tokens", [])
        answer.num_tokens = event.get("tokens_predicted", 0) if event.get("stop") else answer.num_tokens
        return
    for choice in event.get("choices", ()):
        answer.text += choice.get("text") or ""
        answer.token_ids += choice.get("token_ids") or []
    if usage := event.get("usage"):
        answer.num_tokens = usage["completion_tokens"]
