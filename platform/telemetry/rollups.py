"""Buckets of time, in memory and as rows: a batch is added to all of its rows at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from telemetry.models import RESOLUTIONS_S, Rollup
from telemetry.sample import Sample
from telemetry.tally import Tally

# Deployment, resolution, start, version.
BucketKey = tuple[int, int, int, int]


@dataclass(slots=True)
class Bucket:
    """What one second, ten seconds or minute of a version got in a batch."""

    tally: Tally = field(default_factory=Tally)
    gauges: dict[int, dict[str, int]] = field(default_factory=dict)
    sampled_ms: int = 0

    def gauge(self, name: str) -> int:
        """One gauge, of all engines together."""
        return sum(gauges[name] for gauges in self.gauges.values())

    @property
    def kv_share(self) -> float:
        """How full the caches are, 0 to 1."""
        total = self.gauge("kv_total")
        return self.gauge("kv_used") / total if total else 0.0

    @property
    def is_quiet(self) -> bool:
        """Whether there is nothing to write down."""
        return self.tally.is_empty and not self.gauge("running") and not self.gauge("waiting")


def buckets_of(changes: Iterable[tuple[Sample, Tally]]) -> dict[BucketKey, Bucket]:
    """Sum what happened by second, ten seconds and minute."""
    buckets: dict[BucketKey, Bucket] = {}
    for sample, change in changes:
        for resolution in RESOLUTIONS_S:
            start = sample.t_ms // 1000 // resolution * resolution
            bucket = buckets.setdefault((sample.deployment, resolution, start, sample.version), Bucket())
            bucket.tally = bucket.tally.plus(change)
            bucket.gauges[sample.replica] = sample.gauges
            bucket.sampled_ms = max(bucket.sampled_ms, sample.t_ms)
    return buckets


def add_to_rollups(buckets: dict[BucketKey, Bucket]) -> None:
    """Add buckets to their rows: one statement reads those that are there, one writes those that are not."""
    busy = {key: buckets[key] for key in sorted(buckets) if not buckets[key].is_quiet}
    if not busy:
        return
    rows = _locked_rows(busy)
    for key, row in rows.items():
        _add(row, busy[key])
    Rollup.objects.bulk_create(_new_row(key, bucket) for key, bucket in busy.items() if key not in rows)


def _locked_rows(busy: dict[BucketKey, Bucket]) -> dict[BucketKey, Rollup]:
    deployments, resolutions, starts, versions = (set(part) for part in zip(*busy, strict=True))
    found = (
        Rollup.objects.select_for_update()
        .filter(
            deployment_id__in=deployments,
            resolution_s__in=resolutions,
            start_s__in=starts,
            version_id__in=versions,
        )
        .order_by("deployment_id", "resolution_s", "start_s", "version_id")
    )
    rows = {(row.deployment_id, row.resolution_s, row.start_s, row.version_id): row for row in found}
    return {key: row for key, row in rows.items() if key in busy}


def _new_row(key: BucketKey, bucket: Bucket) -> Rollup:
    deployment, resolution, start, version = key
    return Rollup(
        deployment_id=deployment,
        resolution_s=resolution,
        start_s=start,
        version_id=version,
        running=bucket.gauge("running"),
        waiting=bucket.gauge("waiting"),
        kv_share=bucket.kv_share,
        **bucket.tally.columns(),
    )


def _add(row: Rollup, bucket: Bucket) -> None:
    columns = {} if bucket.tally.is_empty else Tally.of_row(row).plus(bucket.tally).columns()
    Rollup.objects.filter(pk=row.pk).update(
        **columns,
        running=max(row.running, bucket.gauge("running")),
        waiting=max(row.waiting, bucket.gauge("waiting")),
        kv_share=max(row.kv_share, bucket.kv_share),
    )
