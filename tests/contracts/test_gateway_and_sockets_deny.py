"""The two doors beside Django, as four people: each address of the gateway × method, each socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2 as httpx
import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator

from accounts.live import GONE, REFUSED
from common.live import hub
from config.asgi import application
from gateway.asgi import application as gateway
from tests.contracts.house import MARK, furnish
from tests.contracts.routes import METHODS, gateway_addresses, socket_paths

pytestmark = pytest.mark.django_db(transaction=True)
CHAT = {"model": f"{MARK}-prod", "messages": [{"role": "user", "content": "x"}]}
TEXT = {"model": f"{MARK}-prod", "prompt": "x"}
# What somebody of another team is answered with success: lists of their own things, empty here.
OUTSIDER_MAY = {("GET", "/v1/models"), ("HEAD", "/v1/models")}
MEMBERS = ("teammate", "owner")


@pytest.fixture
async def door(people: Any) -> AsyncIterator[httpx.AsyncClient]:
    await database_sync_to_async(furnish)(people.owner)
    await gateway.start()
    inside = httpx.ASGITransport(app=application)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=inside, base_url="http://localhost") as client:
        yield client
    await gateway.stop()


async def asked(door: httpx.AsyncClient, headers: dict[str, str]) -> dict[tuple[str, str], httpx.Response]:
    return {
        (method, path): await door.request(method, path, headers=headers, json=CHAT if "chat" in path else TEXT)
        for path in gateway_addresses()
        for method in METHODS
    }


async def test_a_stranger_is_refused_at_every_address_of_the_gateway(door) -> None:
    for headers in ({}, {"authorization": "Bearer tt_wrong"}, {"cookie": "sessionid=nonsense"}):
        assert {reply.status_code for reply in (await asked(door, headers)).values()} == {401}


async def test_an_outsiders_key_reaches_nothing_of_the_house(door, people) -> None:
    headers = await database_sync_to_async(people.bearer)("outsider", "infer")
    for step, reply in (await asked(door, headers)).items():
        assert (reply.status_code == 200) == (step in OUTSIDER_MAY), f"{step} {reply.status_code}"
        assert reply.status_code in (200, 400, 404, 405), f"{step} {reply.status_code}"
        if reply.status_code == 200:
            assert MARK not in reply.text, f"{step} tells of the house"


@pytest.mark.parametrize("who", MEMBERS)
async def test_a_members_key_is_let_in_everywhere(door, people, who) -> None:
    headers = await database_sync_to_async(people.bearer)(who, "infer")
    addresses = gateway_addresses()
    for (method, path), reply in (await asked(door, headers)).items():
        takes = method in addresses[path]
        # 503: the house's deployment has no replica.
        fitting = (200, 503) if takes else (404, 405)
        assert reply.status_code in fitting, f"{method} {path} {reply.status_code} {reply.text}"


@pytest.mark.parametrize("who", MEMBERS)
async def test_a_key_without_the_scope_is_refused_everywhere(door, people, who) -> None:
    headers = await database_sync_to_async(people.bearer)(who, "read")
    assert {reply.status_code for reply in (await asked(door, headers)).values()} == {403}


@pytest.mark.parametrize("path", socket_paths())
async def test_each_socket_opens_for_members_alone(people, path) -> None:
    await database_sync_to_async(furnish)(people.owner)
    await hub.start()
    got = {}
    for who in ("anonymous", "outsider", *MEMBERS):
        cookie = "" if who == "anonymous" else await database_sync_to_async(session_of)(people, who)
        headers = [(b"host", b"localhost"), (b"origin", b"http://localhost"), (b"cookie", cookie.encode())]
        socket = WebsocketCommunicator(application, path, headers=headers)
        got[who] = await socket.connect(timeout=10)
        await socket.disconnect()
    await hub.stop()
    assert got == {
        "anonymous": (False, REFUSED),
        "outsider": (False, GONE),
        "teammate": (True, None),
        "owner": (True, None),
    }


def session_of(people: Any, who: str) -> str:
    return f"sessionid={people.client(who).cookies['sessionid'].value}"
