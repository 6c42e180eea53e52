"""The board is at most one second behind the engine, from the sample to the socket of whoever watches.

Everything is real: an engine process, the node's agent, Valkey, the ingest, the hub of a uvicorn process, a socket. Times
are the server's, which a client learns by a ping. The machine may be busy with other tests, so an attempt may be spoilt;
what the stack can do is told by the best of a few.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from channels.db import database_sync_to_async
from websockets.asyncio.client import ClientConnection

from tests.apps.gateway.served import Instance
from tests.apps.telemetry.live.sockets import open_socket

pytestmark = pytest.mark.django_db
MODEL = "fresh"
BEHIND_S = 1.0
ATTEMPTS, REQUESTS = 4, 5
SKEW_S = 3 * 3600.0


@pytest.fixture(scope="module")
def fresh(instance: Instance) -> Instance:
    instance.serve(MODEL)
    return instance


@dataclass
class Watcher:
    """A client whose own clock is hours off: it knows the server's by a ping alone."""

    link: ClientConnection
    offset_s: float = 0.0
    # How far each frame was behind its sample when it came, and how far the board had fallen behind just before.
    lags: list[float] = field(default_factory=list)
    worst: list[float] = field(default_factory=list)
    newest: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def clock() -> float:
        return time.time() + SKEW_S

    async def learn_the_time(self) -> None:
        """The middle of the quickest of a few round trips is the server's clock."""
        trips = []
        for _ in range(5):
            sent = self.clock()
            await self.link.send(json.dumps({"type": "ping", "t": sent}))
            while (told := json.loads(await self.link.recv()))["type"] != "pong":
                self.newest = told if "seq" in told else self.newest
            assert told["t"] == sent
            trip = self.clock() - sent
            trips.append((trip, told["server_ms"] / 1000 + trip / 2 - self.clock()))
        self.offset_s = min(trips)[1]

    def server_now(self) -> float:
        return self.clock() + self.offset_s

    async def hear(self) -> None:
        """Take the next frame."""
        told = json.loads(await self.link.recv())
        if told["type"] != "event":
            return
        now, before = self.server_now(), self.newest.get("sampled_ms")
        self.lags.append(now - told["sampled_ms"] / 1000)
        if before:
            self.worst.append(now - before / 1000)
        self.newest = told


async def test_a_client_learns_the_servers_clock_by_a_ping(fresh):
    cookie = await database_sync_to_async(fresh.cookie)("owner")
    async with open_socket(fresh, f"/ws/board/{fresh.deployments[MODEL].pk}/", cookie=cookie) as link:
        watcher = Watcher(link)
        await watcher.learn_the_time()
        assert watcher.offset_s == pytest.approx(-SKEW_S, abs=0.5)
        for rubbish in (
            '{"type":"ping"}',
            '{"type":"ping","t":"x"}',
            "[" * 150,
            "no",
            '{"type":"ping","t":1e999}',
        ):
            await link.send(rubbish)
        await watcher.learn_the_time()


async def test_no_frame_is_more_than_a_second_behind_its_sample_while_a_request_runs(fresh):
    cookie = await database_sync_to_async(fresh.cookie)("owner")
    key = await database_sync_to_async(fresh.key)()
    tries = [await attempt(fresh, cookie, key) for _ in range(ATTEMPTS)]
    for one in tries:
        print(
            f"{len(one.lags)} frames, behind at most {max(one.lags):.2f} s; just before one came {max(one.worst):.2f} s"
        )
    assert min(max(one.lags) for one in tries) < BEHIND_S
    # Between two frames the board goes on ageing, and stays under a second all the same.
    assert min(max(one.worst) for one in tries) < BEHIND_S


async def attempt(fresh: Instance, cookie: str, key: str) -> Watcher:
    """Watch a few requests from their first token until the board holds their last."""
    async with open_socket(fresh, f"/ws/board/{fresh.deployments[MODEL].pk}/", cookie=cookie) as link:
        watcher = Watcher(link)
        await watcher.learn_the_time()
        answers = asyncio.ensure_future(asyncio.to_thread(ask, fresh, key))
        while not answers.done():
            await asyncio.wait_for(watcher.hear(), 20)
        while watcher.lags[-1:] == [] or watcher.newest["output_tokens"] < answers.result():
            await asyncio.wait_for(watcher.hear(), 20)
    return watcher


def ask(fresh: Instance, key: str) -> int:
    """Ask a few times; return how many tokens were written."""
    written = 0
    for number in range(REQUESTS):
        body = {"model": MODEL, "prompt": [7 + number] * 40, "max_tokens": 150, "temperature": 0}
        status, _headers, reply = fresh.ask("POST", "/v1/completions", body, key=key)
        assert status == 200, reply
        written += reply["usage"]["completion_tokens"]
    return written
