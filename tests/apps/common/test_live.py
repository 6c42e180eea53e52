"""The hub hands frames to those who watch, bounds the slow, and heals after a cut."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import redis
from channels.db import database_sync_to_async
from channels.sessions import SessionMiddlewareStack
from channels.testing import WebsocketCommunicator
from django.conf import settings

from accounts.live import GONE, REFUSED, LiveSocket
from accounts.models import Membership
from common import live
from common.errors import NotFound
from common.live import QUEUE_FRAMES, Subscription, hub, is_watched, publish

pytestmark = pytest.mark.django_db(transaction=True)


class Counter(LiveSocket):
    """A thing of the team `house` that counts."""

    seq = 0

    async def topic(self) -> str:
        if self.caller.team.slug != "house":
            raise NotFound("not yours")
        return "counter"

    async def snapshot(self) -> dict[str, Any]:
        return {"seq": Counter.seq}


@pytest.fixture
async def running_hub():
    await hub.start()
    yield hub
    await hub.stop()


@pytest.fixture
def cookies(people) -> dict[str, str]:
    """Return the session of each person."""
    return {who: people.client(who).cookies["sessionid"].value for who in ("teammate", "outsider")}


def open_socket(cookie: str) -> WebsocketCommunicator:
    headers = [(b"cookie", f"sessionid={cookie}".encode())]
    return WebsocketCommunicator(SessionMiddlewareStack(Counter.as_asgi()), "/ws/counter/", headers=headers)


async def test_it_sends_a_snapshot_then_frames_in_order(cookies, running_hub) -> None:
    socket = open_socket(cookies["teammate"])
    assert (await socket.connect())[0]
    assert json.loads(await socket.receive_from()) == {"type": "snapshot", "seq": 0}
    for n in range(5):
        await asyncio.to_thread(publish, "counter", json.dumps({"type": "frame", "seq": n + 1}).encode())
    got = [json.loads(await socket.receive_from()) for _ in range(5)]
    assert [frame["seq"] for frame in got] == [1, 2, 3, 4, 5]
    await socket.disconnect()


async def test_it_is_known_what_kind_of_topic_is_watched_while_it_is(
    cookies, running_hub, monkeypatch
) -> None:
    monkeypatch.setattr(live, "TELL_EVERY_S", 0.05)
    monkeypatch.setattr(live, "BELIEVED_S", 1)
    # What another test said is believed for seconds.
    redis.Redis.from_url(settings.REDIS_URL).delete(live.AUDIENCE + "counter")
    assert not await asyncio.to_thread(is_watched, "counter")
    socket = open_socket(cookies["teammate"])
    await socket.connect()
    await socket.receive_from()
    await until("counter", watched=True)
    # Longer than it is believed: it is said again and again.
    await asyncio.sleep(1.2)
    assert await asyncio.to_thread(is_watched, "counter")
    assert not await asyncio.to_thread(is_watched, "other")
    await socket.disconnect()
    await until("counter", watched=False)


async def until(kind: str, *, watched: bool) -> None:
    for _ in range(200):
        if await asyncio.to_thread(is_watched, kind) == watched:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{kind} is not {watched=} within 10 s")


@pytest.mark.parametrize(("who", "code"), [("anonymous", REFUSED), ("outsider", GONE)])
async def test_it_refuses_strangers(cookies, running_hub, who, code) -> None:
    socket = open_socket(cookies.get(who, ""))
    assert await socket.connect() == (False, code)


async def test_it_closes_soon_after_the_right_to_watch_is_lost(
    people, cookies, running_hub, monkeypatch
) -> None:
    monkeypatch.setattr("accounts.live.RECHECK_S", 0.05)
    socket = open_socket(cookies["teammate"])
    await socket.connect()
    await socket.receive_from()
    await database_sync_to_async(Membership.objects.filter(user=people.teammate.user).delete)()
    closed = await socket.receive_output(timeout=5)
    assert closed == {"type": "websocket.close", "code": REFUSED}


def test_a_slow_reader_loses_the_oldest_frames_and_knows_it() -> None:
    subscription = Subscription()
    for n in range(QUEUE_FRAMES + 3):
        subscription.push(str(n).encode())
    assert subscription.missed == 3
    assert len(subscription.frames) == QUEUE_FRAMES
    assert subscription.frames[0] == b"3"
