"""The gateway's own small pool of PostgreSQL connections: plain SQL, no ORM, nothing that hops between threads."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import psycopg
from django.db import connections
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from gateway.errors import unavailable

log = logging.getLogger(__name__)
LIBPQ_WORDS = ("host", "port", "user", "password", "dbname", "sslmode", "sslrootcert")
LIMITS = "-c statement_timeout=5s -c lock_timeout=2s"
WAIT_S = 2.0
V = TypeVar("V")
Row = dict[str, Any]


class Database:
    """Runs single statements, each in its own transaction."""

    def __init__(self) -> None:
        self._pool: AsyncConnectionPool[Any] | None = None

    async def open(self) -> None:
        """Begin to connect; a database that is away is no reason not to start."""
        known = connections["default"].get_connection_params()
        parameters = {key: str(known[key]) for key in LIBPQ_WORDS if known.get(key)}
        self._pool = AsyncConnectionPool(
            kwargs={**parameters, "autocommit": True, "options": LIMITS, "row_factory": dict_row},
            min_size=1,
            max_size=6,
            timeout=WAIT_S,
            open=False,
            name="gateway",
        )
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Give the connections back."""
        if self._pool is not None:
            await self._pool.close(timeout=2)
            self._pool = None

    async def rows(self, statement: str, values: Mapping[str, Any]) -> list[Row]:
        """Run a statement and return its rows; a connection that turns out to be dead is replaced once.

        Raises:
            ApiError: 503 when the database is away.
        """
        if self._pool is None:
            raise RuntimeError("the gateway was not started")
        for attempt in (1, 2):
            try:
                async with self._pool.connection() as connection:
                    cursor = await connection.execute(statement, values)
                    return await cursor.fetchall() if cursor.description else []
            except (psycopg.OperationalError, PoolTimeout) as error:
                if attempt == 2 or isinstance(error, PoolTimeout):
                    log.warning("the gateway waits for the database: %s", error)
                    raise unavailable("The database does not answer.", code="database_unavailable") from error
        raise AssertionError

    async def run_many(self, statement: str, values: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement for each set of values, in one transaction.

        Raises:
            psycopg.Error: when it cannot.
        """
        if self._pool is None:
            raise RuntimeError("the gateway was not started")
        try:
            async with (
                self._pool.connection() as connection,
                connection.transaction(),
                connection.cursor() as cursor,
            ):
                await cursor.executemany(statement, values)
        except PoolTimeout as error:
            raise psycopg.OperationalError(str(error)) from error


class Remembered(Generic[V]):
    """Values that may be a little old. One look-up at a time for each key; while the database is away, the last answer
    counts for a minute longer: serving goes on without PostgreSQL."""

    def __init__(
        self,
        life_s: float,
        stale_s: float = 60.0,
        capacity: int = 10_000,
        *,
        life_of: Callable[[V], float] | None = None,
    ) -> None:
        """Remember each value for `life_s`, or for as long as `life_of` says of it."""
        self.stale_s, self.capacity = stale_s, capacity
        self._life_of = life_of or (lambda _: life_s)
        self._known: dict[Hashable, tuple[float, V]] = {}
        self._locks: dict[Hashable, asyncio.Lock] = {}

    async def get(self, key: Hashable, find: Callable[[], Awaitable[V]]) -> V:
        """Return what is remembered and fresh, or find it."""
        if (known := self._known.get(key)) is not None and self._is_fresh(*known):
            return known[1]
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                known = self._known.get(key)
                if known is not None and self._is_fresh(*known):
                    return known[1]
                return await self._find(key, find, known)
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    def _is_fresh(self, asked_at: float, value: V) -> bool:
        return time.monotonic() - asked_at < self._life_of(value)

    async def _find(
        self, key: Hashable, find: Callable[[], Awaitable[V]], known: tuple[float, V] | None
    ) -> V:
        # The clock starts before the look-up: what is remembered is never younger than it seems.
        asked_at = time.monotonic()
        try:
            value = await find()
        except Exception:
            if known is not None and asked_at - known[0] < self.stale_s:
                return known[1]
            raise
        if len(self._known) >= self.capacity:
            self._known.clear()
        self._known[key] = (asked_at, value)
        return value

    def forget(self, key: Hashable) -> None:
        """Look again next time."""
        self._known.pop(key, None)
