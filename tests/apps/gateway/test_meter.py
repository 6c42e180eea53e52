"""Usage survives what may befall the meter: a stop with a batch in hand, a database that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
import pytest

from gateway.meter import BATCH, Meter, Used


class Slow:
    """A database whose writes hang until they are let go."""

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.written: list[str] = []

    async def run_many(self, _statement: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.begun.set()
        await self.go_on.wait()
        self.written += [row["request_id"] for row in rows]


def used(number: int) -> Used:
    return Used(team_id=1, token_id=1, request_id=f"r{number}", path="/v1/completions", at=0.0)


@pytest.mark.asyncio
async def test_a_stop_writes_what_the_running_batch_had_in_hand() -> None:
    database = Slow()
    meter = Meter(database)  # type: ignore[arg-type]
    names = [f"r{number}" for number in range(BATCH + 3)]
    for number in range(BATCH + 3):
        meter.note(used(number))
    meter.start()
    await database.begun.wait()
    stopping = asyncio.create_task(meter.stop())
    await asyncio.sleep(0)
    database.go_on.set()
    await stopping
    assert sorted(set(database.written)) == sorted(names)
    assert database.written[-3:] == names[-3:]


@pytest.mark.asyncio
async def test_rows_wait_in_their_order_while_the_database_is_away() -> None:
    class Away(Slow):
        is_away = True

        async def run_many(self, statement: str, rows: Sequence[Mapping[str, Any]]) -> None:
            if self.is_away:
                raise psycopg.OperationalError("away")
            await super().run_many(statement, rows)

    database = Away()
    database.go_on.set()
    meter = Meter(database)  # type: ignore[arg-type]
    for number in range(3):
        meter.note(used(number))
    await meter.flush()
    assert database.written == []
    database.is_away = False
    await meter.flush()
    assert database.written == ["r0", "r1", "r2"]
