"""Totals come in, differences are written: nothing is counted twice, and nothing is lost for good."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
import redis
from django.conf import settings
from django.db import transaction
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from telemetry.cube import Shape
from telemetry.ingest import Ingester
from telemetry.models import Board, EngineCounter, Rollup
from telemetry.retention import KEPT_S, forget_old
from telemetry.sample import STREAM, Sample
from telemetry.selectors import board_snapshot, expert_uses, routing_of_window
from telemetry.tally import Tally
from tests.apps.telemetry.samples import NOW_S, SHAPE, counts, sample, summed

pytestmark = pytest.mark.django_db


def test_an_entry_of_the_stream_is_read_back_as_it_was_written(replica):
    before = sample(replica, 3, counts(1), tokens=7, first_ms=(12.5, 80.0))
    fields = {
        name.encode(): value.encode() if isinstance(value, str) else value
        for name, value in before.entry().items()
    }
    after = Sample.of_entry(fields)
    assert (after.replica, after.seq, after.t_ms, after.gauges) == (
        before.replica,
        3,
        before.t_ms,
        before.gauges,
    )
    assert (after.total.cube.counts_PNLE == before.total.cube.counts_PNLE).all()
    assert (after.total.first_token == before.total.first_token).all()
    assert after.total.output_tokens == 7


def test_an_engine_of_an_earlier_release_is_read_without_its_threads(replica):
    entry = sample(replica, 1, counts(1)).entry()
    head = json.loads(entry["head"])
    del head["gauges"]["decode_threads"]
    fields = {name.encode(): value for name, value in (entry | {"head": json.dumps(head)}).items()}
    assert Sample.of_entry(fields).gauges["decode_threads"] == 0
    del head["gauges"]["waiting"]
    with pytest.raises(ValueError, match="waiting"):
        Sample.of_entry(fields | {b"head": json.dumps(head).encode()})


@pytest.mark.parametrize(
    "change",
    [
        {b"head": b"{}"},
        {b"head": b"not json"},
        {b"counts": b"rubbish"},
        {b"first_token": b""},
        {b"reach": b"rubbish"},
        {b"head": b'{"layers": [1], "num_experts": 1000000000, "domains": [""]}'},
    ],
)
def test_an_entry_that_is_none_is_left_out(replica, ingester, change):
    entry = sample(replica, 1, counts(1)).entry() | change
    client = redis.Redis.from_url(settings.REDIS_URL)
    client.delete(STREAM)
    client.xadd(STREAM, entry)
    client.xadd(STREAM, sample(replica, 1, counts(2)).entry())
    found = ingester.read(50)
    assert len(found) == (2 if change == {b"first_token": b""} else 1)


def test_a_worker_of_an_earlier_release_is_heard_all_the_same(replica):
    fields = {
        name.encode(): value.encode() if isinstance(value, str) else value
        for name, value in sample(replica, 1, counts(1)).entry().items()
    }
    del fields[b"reach"]
    after = Sample.of_entry(fields)
    assert (after.total.cube.counts_PNLE == counts(1)).all()
    assert not after.total.cube.reach_PN2.any()


def test_totals_become_differences_in_each_resolution(replica, ingester):
    first, second = counts(1), counts(1) + counts(2)
    ingester.write([sample(replica, 1, first, t_s=NOW_S, tokens=10)])
    ingester.write([sample(replica, 2, second, t_s=NOW_S + 1, tokens=25)])
    assert [row.output_tokens for row in Rollup.objects.filter(resolution_s=1).order_by("start_s")] == [
        10,
        15,
    ]
    for resolution in (1, 10, 60):
        assert (summed(resolution) == second).all()


def test_the_same_entry_twice_adds_nothing(replica, ingester):
    ingester.write([sample(replica, 1, counts(1), tokens=5)])
    ingester.write([sample(replica, 1, counts(1), tokens=5)])
    Ingester().write([sample(replica, 1, counts(1), tokens=5)])
    assert (summed(60) == counts(1)).all()
    assert Board.objects.get().output_tokens == 5


def test_a_lost_entry_is_healed_by_the_next(replica, ingester):
    total = counts(1)
    ingester.write([sample(replica, 1, total)])
    total = total + counts(2)
    # This one never arrives: FLUSHALL, a restart, a full disk.
    total = total + counts(3)
    ingester.write([sample(replica, 3, total, t_s=NOW_S + 9)])
    assert (summed(60) == total).all()


def test_a_new_engine_of_the_same_replica_counts_from_nothing(replica, ingester):
    ingester.write([sample(replica, 9, counts(1), epoch=1)])
    ingester.write([sample(replica, 1, counts(2), epoch=2)])
    assert (summed(60) == counts(1) + counts(2)).all()
    assert EngineCounter.objects.count() == 2


def test_a_batch_that_fails_changes_neither_rows_nor_the_board_in_memory(replica, ingester, monkeypatch):
    ingester.write([sample(replica, 1, counts(1))])
    monkeypatch.setattr("telemetry.ingest.add_to_rollups", lambda buckets: 1 / 0)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        ingester.write([sample(replica, 2, counts(1) + counts(2))])
    monkeypatch.undo()
    ingester.write([sample(replica, 3, counts(1) + counts(2))])
    assert (summed(60) == counts(1) + counts(2)).all()


def test_entries_of_unknown_replicas_are_not_counted(replica, ingester):
    stranger = sample(replica, 1, counts(1))
    stranger.replica += 1000
    forged = sample(replica, 1, counts(1))
    forged.deployment += 1
    ingester.write([stranger, forged])
    assert not Rollup.objects.exists()


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.randoms(use_true_random=False), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_whatever_is_lost_doubled_or_cut_into_batches_the_sum_is_the_last_total(replica, steps_source, steps):
    Rollup.objects.all().delete()
    EngineCounter.objects.all().delete()
    total, said = np.zeros_like(counts(0)), []
    for seq, step in enumerate(steps, start=1):
        total = total + counts(step)
        said.append(sample(replica, seq, total, t_s=NOW_S + seq / 3))
    heard = [one for one in said[:-1] if steps_source.random() < 0.6]
    heard += [steps_source.choice(heard)] * 2 if heard else []
    heard.sort(key=lambda one: one.seq)
    ingester, at = Ingester(), 0
    while at < len(heard):
        size = steps_source.randint(1, 3)
        ingester.write(heard[at : at + size])
        at += size
        if steps_source.random() < 0.3:
            ingester = Ingester()
    ingester.write([said[-1]])
    assert (summed(10) == total).all()


def test_the_stream_is_read_from_its_beginning_by_a_new_reader_and_nothing_is_doubled(replica):
    client = redis.Redis.from_url(settings.REDIS_URL)
    client.delete(STREAM)
    total = np.zeros_like(counts(0))
    for seq in range(1, 6):
        total = total + counts(seq)
        client.xadd(STREAM, sample(replica, seq, total, t_s=NOW_S + seq).entry())
    for _ in range(3):
        Ingester().turn(0.2)
    assert (summed(60) == total).all()


def test_flushall_in_the_middle_loses_nothing(replica, ingester, monkeypatch):
    monkeypatch.setattr("telemetry.ingest.is_watched", lambda kind: True)
    client = redis.Redis.from_url(settings.REDIS_URL)
    client.flushall()
    client.xadd(STREAM, sample(replica, 1, counts(1)).entry())
    ingester.turn(0.2)
    client.xadd(STREAM, sample(replica, 2, counts(1) + counts(2), t_s=NOW_S + 1).entry())
    client.flushall()
    total = counts(1) + counts(2) + counts(3)
    client.xadd(STREAM, sample(replica, 3, total, t_s=NOW_S + 2).entry())
    ingester.turn(0.2)
    assert (summed(60) == total).all()


def test_a_stream_that_began_anew_with_lower_ids_is_noticed(replica, ingester, monkeypatch):
    monkeypatch.setattr("telemetry.ingest.is_watched", lambda kind: True)
    client = redis.Redis.from_url(settings.REDIS_URL)
    client.flushall()
    client.xadd(STREAM, sample(replica, 1, counts(1)).entry(), id="99999999999999-0")
    ingester.turn(0.2)
    client.flushall()
    client.xadd(STREAM, sample(replica, 2, counts(1) + counts(2)).entry(), id="5-0")
    ingester.turn(0.6)
    assert (summed(60) == counts(1) + counts(2)).all()


def test_the_frame_the_snapshot_and_the_api_say_the_same(replica, ingester, monkeypatch):
    published: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        "telemetry.ingest.publish", lambda topic, frame: published.append((topic, json.loads(frame)))
    )
    monkeypatch.setattr("telemetry.ingest.is_watched", lambda kind: True)
    now = time.time()
    total = counts(1) + counts(2)
    ingester.write([sample(replica, 1, counts(1), t_s=now - 2, tokens=10, first_ms=(50.0,))])
    ingester.write([sample(replica, 2, total, t_s=now - 1, tokens=30, first_ms=(50.0, 70.0))])
    topic, frame = published[-1]
    assert topic == f"board:{replica.deployment_id}"
    assert (frame["type"], frame["seq"], frame["output_tokens"]) == ("event", 2, 30)
    shot = board_snapshot(replica.deployment)
    same = "seq sampled_ms counts reach reach_domains domains layers num_layers output_tokens first_token gauges version"
    for name in same.split():
        assert shot[name] == frame[name], name
    routing = routing_of_window(replica.deployment, 60)
    assert (np.array(routing["counts"]) == total).all()
    assert routing["total"] == total.sum()
    assert routing["first_token_ms"]["count"] == 2
    assert frame["sampled_ms"] == int((now - 1) * 1000)


def test_domains_that_a_new_revision_brings_join_the_same_board(replica, ingester):
    wider = Shape(("", "support", "law"), SHAPE.layers, SHAPE.num_experts)
    ingester.write([sample(replica, 1, counts(1))])
    ingester.write([sample(replica, 1, counts(2), epoch=2, shape=wider)])
    row = Rollup.objects.get(resolution_s=60)
    tally = Tally.of_row(row)
    assert tally.cube.shape.domains == ("", "support", "copy", "law")
    assert tally.cube.counts_PNLE.sum() == counts(1).sum() + counts(2).sum()
    assert (tally.cube.counts_PNLE[:, 3] == counts(2)[:, 2]).all()


def test_old_rollups_are_forgotten_fine_ones_first(replica, ingester):
    now = int(time.time())
    old = now - KEPT_S[1] - 120
    ingester.write([sample(replica, 1, counts(1), t_s=old)])
    forget_old()
    assert sorted(Rollup.objects.values_list("resolution_s", flat=True)) == [10, 60]


def test_idle_seconds_write_no_rows(replica, ingester):
    quiet = sample(replica, 1, np.zeros_like(counts(0)))
    quiet.gauges |= {"running": 0}
    ingester.write([quiet])
    assert not Rollup.objects.exists()
    assert Board.objects.get().seq == 1


def test_an_engine_that_starts_is_told_what_those_before_it_used(replica, ingester):
    now = time.time()
    assert expert_uses(replica.deployment, replica.version_id) == []
    ingester.write([sample(replica, 1, counts(1), t_s=now - 7200)])
    ingester.write([sample(replica, 1, counts(2), t_s=now - 60, epoch=2)])
    ingester.write([sample(replica, 1, counts(3), t_s=now - 3 * 86_400, epoch=3)])
    wanted = (counts(1) + counts(2)).sum((0, 1)).tolist()
    assert expert_uses(replica.deployment, replica.version_id) == wanted
    assert expert_uses(replica.deployment, replica.version_id + 1) == []
