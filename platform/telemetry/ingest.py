"""The loop "telemetry": samples in, rollups and boards out.

An entry holds totals, so reading is idempotent: the difference to the engine's last totals, kept in PostgreSQL and
written in the same transaction as the rollups, is what happened since. Nothing is acknowledged and nothing can be lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import redis
from django.conf import settings
from django.db import transaction

from common.live import is_watched, publish
from common.loops import loop
from telemetry.boards import KIND, BoardWriter
from telemetry.counters import changes
from telemetry.rollups import add_to_rollups, buckets_of
from telemetry.sample import STREAM, Sample

log = logging.getLogger(__name__)
TURN_S = 2.0
BLOCK_MS = 250
BATCH = 256
# Entries gather for so long while nobody watches a board (a gauge lives for longer), and so often it is looked whether
# somebody does.
GATHER_S, LOOK_EVERY_S = 3.0, 0.25
BEGINNING = b"0-0"


class Ingester:
    """Where the reading has come to; it may be forgotten at any time."""

    def __init__(self) -> None:
        self.cursor = BEGINNING
        self.boards = BoardWriter()
        self.redis: redis.Redis | None = None
        # Until then entries gather, over several turns when need be.
        self.rests_until = 0.0

    def turn(self, seconds: float = TURN_S) -> None:
        """Read and write for a while."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self.rests(left):
                continue
            found = self.read(max(1, min(BLOCK_MS, int(left * 1000))))
            if found is None:
                return
            if found:
                self.write(found)
                self.rests_until = time.monotonic() + GATHER_S

    def rests(self, left_s: float) -> bool:
        """Let entries gather a moment longer while nobody watches: they are totals, so that one write for many of them
        says as much."""
        wait = self.rests_until - time.monotonic()
        if wait <= 0 or is_watched(KIND):
            return False
        time.sleep(min(wait, left_s, LOOK_EVERY_S))
        return True

    def read(self, block_ms: int) -> list[Sample] | None:
        """Wait for entries; None when Valkey is away."""
        if self.redis is None:
            self.redis = redis.Redis.from_url(settings.REDIS_URL, socket_timeout=5, socket_connect_timeout=2)
        try:
            answer: Any = self.redis.xread({STREAM: self.cursor}, count=BATCH, block=block_ms)
            if not answer:
                self._notice_a_new_stream(self.redis)
                return []
        except redis.RedisError as error:
            log.warning("telemetry waits for Valkey: %s", error)
            self.redis.close()
            self.redis, self.cursor = None, BEGINNING
            return None
        entries = answer[0][1] if isinstance(answer, list) else next(iter(answer.values()))[0]
        self.cursor = entries[-1][0]
        return list(_readable(entries))

    def write(self, samples: list[Sample]) -> None:
        """Write what is new, then show it."""
        try:
            with transaction.atomic():
                buckets = buckets_of(changes(newest_of_each_second(samples)))
                # Boards first: a window that is read from rows must not find this batch in them.
                frames = self.boards.advance(buckets, is_shown=is_watched(KIND))
                add_to_rollups(buckets)
        except BaseException:
            self.boards = BoardWriter()
            raise
        for topic, frame in frames:
            publish(topic, frame)

    def _notice_a_new_stream(self, client: redis.Redis) -> None:
        """After a FLUSHALL with a clock set back, ids begin below the cursor."""
        try:
            last = client.xinfo_stream(STREAM)["last-generated-id"]
        except redis.ResponseError:
            return
        if _order(last) < _order(self.cursor):
            self.cursor = BEGINNING


def newest_of_each_second(samples: Iterable[Sample]) -> list[Sample]:
    """Keep one entry a second of each engine: totals between add nothing but work."""
    kept: dict[tuple[int, int, int], Sample] = {}
    for sample in samples:
        key = (sample.replica, sample.epoch, sample.t_ms // 1000)
        if key not in kept or kept[key].seq < sample.seq:
            kept[key] = sample
    return sorted(kept.values(), key=lambda one: (one.replica, one.epoch, one.seq))


def _readable(entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> Iterable[Sample]:
    for entry_id, fields in entries:
        try:
            yield Sample.of_entry(fields)
        except ValueError as error:
            log.warning("entry %s of %s is left out: %s", entry_id.decode(), STREAM, error)


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _dash, number = entry_id.decode().partition("-")
    return int(milliseconds), int(number or 0)


_ingester = Ingester()


@loop("telemetry", every_s=0.05)
def ingest() -> None:
    """Take one turn."""
    _ingester.turn()
