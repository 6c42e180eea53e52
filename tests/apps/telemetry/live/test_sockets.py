"""Live sockets on the real ASGI stack: idle ones live, many are served, strangers and other teams see nothing."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from channels.db import database_sync_to_async
from websockets.exceptions import ConnectionClosed, InvalidStatus

from accounts.models import Membership
from common.live import publish
from deployments.announce import announce
from deployments.models import Deployment
from registry.models import ModelVersion
from tests.apps.gateway.served import Instance
from tests.apps.registry.fixtures import make_version
from tests.apps.telemetry.live.sockets import Board, open_socket

pytestmark = pytest.mark.django_db
IDLE_S = 20
NUM_SOCKETS = 200
GONE = 4404


@pytest.fixture(scope="module")
def deployment(instance: Instance) -> Deployment:
    """A deployment that nobody wants to run: its feeds are idle."""
    version: ModelVersion = make_version(instance.people, instance.folder)
    return Deployment.objects.create(
        team=instance.people.owner.team, name="quiet", desired_version=version, desired_replicas=0
    )


def paths(deployment: Deployment) -> list[str]:
    return [f"/ws/board/{deployment.pk}/", f"/ws/deployments/{deployment.pk}/"]


def frame(seq: int) -> bytes:
    return json.dumps({"type": "event", "seq": seq, "sent": time.time()}).encode()


async def test_idle_sockets_live_for_twenty_seconds_and_still_hear(instance, deployment):
    """Time is the point here: with the wrong channel layer idle sockets died after 5 to 15 s."""
    cookie = await database_sync_to_async(instance.cookie)("teammate")
    board, page = paths(deployment)
    async with (
        open_socket(instance, board, cookie=cookie) as one,
        open_socket(instance, page, cookie=cookie) as two,
    ):
        feeds = [Board(one), Board(two)]
        for feed in feeds:
            assert (await feed.next())["type"] == "snapshot"
        heard = asyncio.ensure_future(feeds[0].next())
        done, _pending = await asyncio.wait({heard}, timeout=IDLE_S)
        assert not done
        await asyncio.to_thread(publish, f"board:{deployment.pk}", frame(7))
        assert (await asyncio.wait_for(heard, 5))["seq"] == 7
        await database_sync_to_async(announce)(deployment.pk)
        assert (await asyncio.wait_for(feeds[1].next(), 5))["type"] == "event"


async def test_two_hundred_sockets_all_hear_every_frame(instance, deployment):
    cookie = await database_sync_to_async(instance.cookie)("owner")
    (board, _page), lags, frames = paths(deployment), [], 4

    async def watch(ready: asyncio.Semaphore) -> list[int]:
        async with open_socket(instance, board, cookie=cookie) as link:
            feed = Board(link)
            first = await feed.next()
            assert first["type"] == "snapshot"
            ready.release()
            seen = []
            while len(seen) < frames:
                message = await feed.next()
                if message["type"] == "event":
                    lags.append(time.time() - message["sent"])
                    seen.append(message["seq"])
            return seen

    ready = asyncio.Semaphore(0)
    watchers = [asyncio.ensure_future(watch(ready)) for _ in range(NUM_SOCKETS)]
    for _ in range(NUM_SOCKETS):
        await asyncio.wait_for(ready.acquire(), 60)
    for seq in range(1, frames + 1):
        await asyncio.to_thread(publish, f"board:{deployment.pk}", frame(seq))
        await asyncio.sleep(0.5)
    assert await asyncio.wait_for(asyncio.gather(*watchers), 60) == [[1, 2, 3, 4]] * NUM_SOCKETS
    lags.sort()
    print(
        f"200 sockets × 2/s: lag p50 {lags[len(lags) // 2] * 1000:.0f} ms, p95 {lags[len(lags) * 95 // 100] * 1000:.0f} ms"
    )
    assert lags[len(lags) // 2] < 1.0


@pytest.mark.parametrize("which", [0, 1])
async def test_another_team_and_strangers_see_nothing(instance, deployment, which):
    path = paths(deployment)[which]
    outsider = await database_sync_to_async(instance.cookie)("outsider")
    for cookie in ("", "sessionid=nonsense", outsider):
        with pytest.raises((InvalidStatus, ConnectionClosed)) as refusal:
            async with open_socket(instance, path, cookie=cookie) as link:
                await link.recv()
        if isinstance(refusal.value, InvalidStatus):
            assert refusal.value.response.status_code == 403
        else:
            assert refusal.value.rcvd is not None
            assert refusal.value.rcvd.code in (4403, GONE)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"])
async def test_a_foreign_page_is_refused_even_with_a_good_cookie(instance, deployment, origin):
    cookie = await database_sync_to_async(instance.cookie)("owner")
    with pytest.raises(InvalidStatus) as refusal:
        async with open_socket(instance, paths(deployment)[0], cookie=cookie, origin=origin):
            pass
    assert refusal.value.response.status_code == 403


async def test_a_frame_over_the_limit_closes_the_socket(instance, deployment):
    cookie = await database_sync_to_async(instance.cookie)("owner")
    async with open_socket(instance, paths(deployment)[0], cookie=cookie) as link:
        await link.recv()
        with pytest.raises(ConnectionClosed) as closed:
            await link.send("x" * 70_000)
            while True:
                await asyncio.wait_for(link.recv(), 10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


async def test_who_leaves_the_team_stops_seeing_within_seconds(instance, deployment):
    cookie = await database_sync_to_async(instance.cookie)("teammate")
    async with open_socket(instance, paths(deployment)[0], cookie=cookie) as link:
        await link.recv()
        gone = Membership.objects.filter(user=instance.people.teammate.user)
        await database_sync_to_async(gone.delete)()
        left_at = time.monotonic()
        with pytest.raises(ConnectionClosed):
            while True:
                await asyncio.wait_for(link.recv(), 10)
        assert time.monotonic() - left_at < 6


async def test_feeds_heal_after_valkey_was_killed(instance, deployment, valkey):
    cookie = await database_sync_to_async(instance.cookie)("owner")
    async with open_socket(instance, paths(deployment)[0], cookie=cookie) as link:
        feed = Board(link)
        await feed.next()
        valkey.process.kill()
        valkey.process.wait()
        valkey.start()
        # The web process finds it again by itself, and says that something may have been missed.
        assert (await asyncio.wait_for(feed.next(), 15))["type"] == "snapshot"

        async def heard(seq: int) -> dict[str, Any]:
            while (message := await feed.next())["seq"] != seq:
                pass
            return message

        listening = asyncio.ensure_future(heard(99))
        for _ in range(100):
            await asyncio.to_thread(publish, f"board:{deployment.pk}", frame(99))
            if (await asyncio.wait({listening}, timeout=0.2))[0]:
                break
        assert listening.result()["seq"] == 99
