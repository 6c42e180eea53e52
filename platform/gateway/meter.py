"""One row for each request that was begun or met an outage, written in batches once a second, so that metering costs
the request nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import asdict, dataclass

import psycopg

from gateway.database import Database

log = logging.getLogger(__name__)
EVERY_S = 1.0
BATCH = 500
# While the database is away; beyond it the oldest are given up, with a line in the log.
MAX_KEPT = 20_000
INSERT = """
INSERT INTO gateway_usage (team_id, token_id, deployment_id, version_id, request_id, path, domain, prompt_tokens,
                           completion_tokens, finish_reason, first_token_ms, total_ms, at)
SELECT %(team_id)s, %(token_id)s, %(deployment_id)s, %(version_id)s, %(request_id)s, %(path)s, %(domain)s,
       %(prompt_tokens)s, %(completion_tokens)s, %(finish_reason)s, %(first_token_ms)s, %(total_ms)s,
       to_timestamp(%(at)s)
ON CONFLICT (request_id) DO NOTHING
"""


@dataclass(slots=True)
class Used:
    """What one request used, or that nobody could take it."""

    team_id: int
    token_id: int | None
    request_id: str
    path: str
    at: float
    # None while it is unknown: the database may be away before a deployment was looked up.
    deployment_id: int | None = None
    version_id: int = 0
    domain: str = ""
    # Whether an engine took it.
    is_begun: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    # Empty until it has ended, or was turned away by an outage.
    finish_reason: str = ""
    first_token_ms: float | None = None
    total_ms: float | None = None


class Meter:
    """Gathers rows and writes them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._waiting: deque[Used] = deque()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="gateway-meter")

    async def stop(self) -> None:
        """Write the rest and end."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self.flush()

    def note(self, used: Used) -> None:
        """Keep one row for the next batch."""
        if len(self._waiting) >= MAX_KEPT:
            lost = self._waiting.popleft()
            log.error("usage of request %s was given up: the database is away for too long", lost.request_id)
        self._waiting.append(used)

    async def flush(self) -> None:
        """Write what waits."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                await self.database.run_many(INSERT, [asdict(one) for one in batch])
            except asyncio.CancelledError:
                # The process stops with a batch in hand: it goes back, and `stop` writes it.
                self._waiting.extendleft(reversed(batch))
                raise
            except psycopg.OperationalError as error:
                log.warning("usage waits for the database: %s", error)
                self._waiting.extendleft(reversed(batch))
                return
            except psycopg.Error:
                # One bad row (a team that is gone) must not take the others with it.
                await self._one_by_one(batch)

    async def _one_by_one(self, batch: list[Used]) -> None:
        for one in batch:
            try:
                await self.database.run_many(INSERT, [asdict(one)])
            except psycopg.Error as error:
                log.error("usage of request %s was not written: %s", one.request_id, error)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self.flush()
