"""What happened since each engine was last heard, from its totals; the last ones are kept in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from django.db.models.functions import Now

from deployments.models import Replica
from telemetry.models import EngineCounter
from telemetry.sample import Sample
from telemetry.tally import Tally

EngineKey = tuple[int, int]


def changes(samples: list[Sample]) -> list[tuple[Sample, Tally]]:
    """Each sample that is new, with what happened before it; the totals after the last one are remembered.

    Samples of one engine stand together, oldest first. Those of replicas that are not ours are left out.
    """
    heard = _of_known_replicas(samples)
    rows = _locked_counters(heard)
    found: list[tuple[Sample, Tally]] = []
    for key, said in groupby(heard, key=_engine_of):
        found += _since(rows.get(key), said)
    return found


def _since(row: EngineCounter | None, said: Iterable[Sample]) -> list[tuple[Sample, Tally]]:
    """What one engine's samples add, one after the other; its row is read and written once for all of them."""
    last = None if row is None else Tally.of_row(row)
    seq = None if row is None else row.seq
    found: list[tuple[Sample, Tally]] = []
    for sample in said:
        if seq is not None and sample.seq <= seq:
            continue
        change = sample.total if last is None else sample.total.minus(last)
        if last is None or not change.is_empty:
            last = sample.total
        seq = sample.seq
        found.append((sample, change))
    if found:
        _remember(row, found)
    return found


def _remember(row: EngineCounter | None, found: list[tuple[Sample, Tally]]) -> None:
    newest = found[-1][0]
    if row is None:
        EngineCounter.objects.create(
            replica_id=newest.replica, epoch=newest.epoch, seq=newest.seq, **newest.total.columns()
        )
        return
    is_quiet = all(change.is_empty for _sample, change in found)
    columns = {} if is_quiet else newest.total.columns()
    EngineCounter.objects.filter(pk=row.pk).update(**columns, seq=newest.seq, at=Now())


def _of_known_replicas(samples: list[Sample]) -> list[Sample]:
    wanted = {sample.replica for sample in samples}
    rows = Replica.objects.filter(pk__in=wanted).values_list("pk", "deployment_id", "version_id")
    known = {pk: (deployment, version) for pk, deployment, version in rows}
    return [one for one in samples if known.get(one.replica) == (one.deployment, one.version)]


def _locked_counters(samples: list[Sample]) -> dict[EngineKey, EngineCounter]:
    engines = {_engine_of(sample) for sample in samples}
    rows = (
        EngineCounter.objects.select_for_update()
        .filter(replica_id__in={key[0] for key in engines}, epoch__in={key[1] for key in engines})
        .order_by("pk")
    )
    return {(row.replica_id, row.epoch): row for row in rows}


def _engine_of(sample: Sample) -> EngineKey:
    return sample.replica, sample.epoch
