"""How long the gateway remembers who serves: half a second, but who waits for a first replica finds it at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway import database
from gateway.directory import COMING_LIFE_S, LIFE_S, Directory
from gateway.errors import ApiError

READY = [{"id": 7, "epoch": 1, "address": "/nowhere"}]


class Rows:
    """A database whose one deployment is as the test says; counts how often it is asked."""

    def __init__(self) -> None:
        self.replicas: list[dict[str, Any]] = []
        self.desired, self.is_there, self.asked = 1, True, 0

    async def rows(self, _statement: str, _values: dict[str, Any]) -> list[dict[str, Any]]:
        self.asked += 1
        told = {"id": 3, "name": "support", "domains": None, "desired_replicas": self.desired, "live_version_id": 9}
        told |= {"live_revision": 1, "created": 0, "number": 1, "model_name": "m", "live_domains": None}
        return [{**told, "replicas": list(self.replicas)}] if self.is_there else []


class Clock:
    """The time that look-ups see."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(database, "time", found)
    return found


def test_a_first_replica_is_found_as_soon_as_it_is_there(clock: Clock) -> None:
    async def play() -> None:
        rows = Rows()
        directory = Directory(rows)  # type: ignore[arg-type]
        assert not (await directory.find(5, "support")).replicas
        rows.replicas = READY
        # A crowd that waits still asks the database seldom.
        assert not (await directory.find(5, "support")).replicas
        assert rows.asked == 1
        clock.now += 1.01 * COMING_LIFE_S
        assert (await directory.find(5, "support")).replicas

    assert COMING_LIFE_S <= LIFE_S / 5
    asyncio.run(play())


@pytest.mark.parametrize("state", ["serving", "stopped", "unknown"])
def test_what_is_not_coming_is_remembered_for_half_a_second(clock: Clock, state: str) -> None:
    async def play() -> None:
        rows = Rows()
        rows.replicas, rows.desired = READY if state == "serving" else [], int(state == "serving")
        rows.is_there = state != "unknown"
        directory = Directory(rows)  # type: ignore[arg-type]
        for later_s, asked in ((0.0, 1), (0.9 * LIFE_S, 1), (0.2 * LIFE_S, 2)):
            clock.now += later_s
            try:
                await directory.find(5, "support")
            except ApiError:
                assert state == "unknown"
            assert rows.asked == asked

    asyncio.run(play())
