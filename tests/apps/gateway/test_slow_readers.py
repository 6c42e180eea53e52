"""A client that stops reading is hung up on; one that reads slowly, or nothing for a moment, is not."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from gateway import http
from gateway.asgi import Gateway
from gateway.http import Call, ClientGone


class Client:
    """A connection whose reader can be stopped."""

    def __init__(self) -> None:
        self.reading = asyncio.Event()
        self.reading.set()
        self.left = asyncio.Event()
        self.got: list[bytes] = []

    async def receive(self) -> MutableMapping[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        await self.reading.wait()
        self.got.append(message["body"])

    def call(self) -> Call:
        scope = {"method": "POST", "path": "/v1/chat/completions", "headers": []}
        return Call(scope, self.receive, self.send, "r1")


async def parts(call: Call, number: int) -> None:
    for place in range(number):
        await call.write_part(b"%d" % place)
    await call.write(b"end", more=False)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "WRITE_TIMEOUT_S", 0.08)


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_takes_nothing_is_gone() -> None:
    client = Client()
    client.reading.clear()
    call = client.call()
    with pytest.raises(ClientGone):
        await Gateway()._until_gone(call, parts(call, 3))
    assert client.got == []


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_reads_to_the_end_is_answered_however_long_it_takes() -> None:
    client = Client()
    call = client.call()

    async def slowly() -> None:
        for _ in range(4):
            await asyncio.sleep(0.05)
            await parts(call, 2)

    await Gateway()._until_gone(call, slowly())
    assert client.got == [b"0", b"1", b"end"] * 4


async def test_a_client_that_leaves_ends_the_work_at_once() -> None:
    client = Client()
    client.reading.clear()
    call = client.call()
    asyncio.get_running_loop().call_later(0.01, client.left.set)
    async with asyncio.timeout(5):
        with pytest.raises(ClientGone):
            await Gateway()._until_gone(call, parts(call, 3))
