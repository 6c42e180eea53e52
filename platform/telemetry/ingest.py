"""The loop "telemetry": samples in, rollups and boards out.

An entry holds totals, so reading is idempotent: the difference to the engine's last totals, kept in PostgreSQL and
written in the same transaction as the rollups, is what happened since. Nothing is acknowledged and nothing can be lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import redis
from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from common.live import is_watched, publish
from common.loops import loop
from deployments.models import Replica
from telemetry.boards import KIND, BoardWriter
from telemetry.models import RESOLUTIONS_S, EngineCounter, Rollup
from telemetry.sample import STREAM, Sample
from telemetry.tally import Tally

log = logging.getLogger(__name__)
TURN_S = 2.0
BLOCK_MS = 250
BATCH = 256
# Entries gather for so long while nobody watches a board, and so often it is looked whether somebody does.
GATHER_S, LOOK_EVERY_S = 1.0, 0.2
BEGINNING = b"0-0"


@dataclass(slots=True)
class Bucket:
    """What one second, ten seconds or minute of a version got in this batch."""

    tally: Tally = field(default_factory=Tally)
    gauges: dict[int, dict[str, int]] = field(default_factory=dict)
    sampled_ms: int = 0


BucketKey = tuple[int, int, int, int]


class Ingester:
    """Where the reading has come to; it may be forgotten at any time."""

    def __init__(self) -> None:
        self.cursor = BEGINNING
        self.boards = BoardWriter()
        self.redis: redis.Redis | None = None

    def turn(self, seconds: float = TURN_S) -> None:
        """Read and write for a while."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            found = self.read(max(1, min(BLOCK_MS, int(left * 1000))))
            if found is None:
                return
            if found:
                self.write(found)
                self.gather(deadline)

    def gather(self, deadline: float) -> None:
        """Let entries gather while nobody watches: they are totals, so that one write for four of them says as much."""
        until = min(deadline, time.monotonic() + GATHER_S)
        while (left := until - time.monotonic()) > 0 and not is_watched(KIND):
            time.sleep(min(LOOK_EVERY_S, left))

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
                buckets = differences(newest_of_each_second(samples))
                # Boards first: a window that is read from rows must not find this batch in them.
                frames = self.boards.advance(buckets)
                for key in sorted(buckets):
                    add_to_rollup(key, buckets[key])
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


def differences(samples: list[Sample]) -> dict[BucketKey, Bucket]:
    """Turn totals into what happened, by bucket, and remember the totals."""
    buckets: dict[BucketKey, Bucket] = {}
    known = {
        row.pk: (row.deployment_id, row.version_id)
        for row in Replica.objects.filter(pk__in={sample.replica for sample in samples})
    }
    for sample in samples:
        if known.get(sample.replica) != (sample.deployment, sample.version):
            continue
        change = advance_counter(sample)
        if change is None:
            continue
        for resolution in RESOLUTIONS_S:
            start = sample.t_ms // 1000 // resolution * resolution
            bucket = buckets.setdefault((sample.deployment, resolution, start, sample.version), Bucket())
            bucket.tally = bucket.tally.plus(change)
            bucket.gauges[sample.replica] = sample.gauges
            bucket.sampled_ms = max(bucket.sampled_ms, sample.t_ms)
    return buckets


def advance_counter(sample: Sample) -> Tally | None:
    """Return what happened since the engine's last sample, or None for one that was seen already."""
    row, made = EngineCounter.objects.select_for_update().get_or_create(
        replica_id=sample.replica, epoch=sample.epoch, defaults=sample.total.columns() | {"seq": sample.seq}
    )
    if made:
        return sample.total
    if sample.seq <= row.seq:
        return None
    change = sample.total.minus(Tally.of_row(row))
    columns = {} if change.is_empty else sample.total.columns()
    EngineCounter.objects.filter(pk=row.pk).update(**columns, seq=sample.seq, at=Now())
    return change


def add_to_rollup(key: BucketKey, bucket: Bucket) -> None:
    """Add a bucket to its row."""
    deployment, resolution, start, version = key
    place = {
        "deployment_id": deployment,
        "resolution_s": resolution,
        "start_s": start,
        "version_id": version,
    }
    running = sum(gauges["running"] for gauges in bucket.gauges.values())
    waiting = sum(gauges["waiting"] for gauges in bucket.gauges.values())
    if bucket.tally.is_empty and not running and not waiting:
        return
    total = sum(gauges["kv_total"] for gauges in bucket.gauges.values())
    share = sum(gauges["kv_used"] for gauges in bucket.gauges.values()) / total if total else 0.0
    row = Rollup.objects.select_for_update().filter(**place).first()
    if row is None:
        Rollup.objects.create(
            **place, **bucket.tally.columns(), running=running, waiting=waiting, kv_share=share
        )
        return
    columns = bucket.tally.columns()
    if not bucket.tally.is_empty:
        columns = Tally.of_row(row).plus(bucket.tally).columns()
    else:
        columns = {}
    Rollup.objects.filter(pk=row.pk).update(
        **columns,
        running=max(row.running, running),
        waiting=max(row.waiting, waiting),
        kv_share=max(row.kv_share, share),
    )


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
