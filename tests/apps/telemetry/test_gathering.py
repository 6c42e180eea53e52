"""While nobody watches a board, what engines say gathers and is written down together."""

from __future__ import annotations

import threading

import pytest
import redis
from django.conf import settings

from telemetry.models import Board, EngineCounter, Rollup
from telemetry.sample import STREAM
from telemetry.tally import Tally
from tests.apps.telemetry.samples import NOW_S, counts, sample, summed

pytestmark = pytest.mark.django_db


def test_entries_gather_while_nobody_watches_and_are_read_at_once_while_somebody_does(
    replica, ingester, monkeypatch
):
    client = redis.Redis.from_url(settings.REDIS_URL)
    writes: list[int] = []
    monkeypatch.setattr(ingester, "write", lambda samples: writes.append(len(samples)))

    def speak(for_s: float) -> None:
        """Entries twenty times a second, while the ingester reads."""
        client.delete(STREAM)
        writes.clear()
        stop = threading.Event()

        def send() -> None:
            seq = 0
            while not stop.wait(0.05):
                seq += 1
                client.xadd(STREAM, sample(replica, seq, counts(seq), t_s=NOW_S + seq).entry())

        speaker = threading.Thread(target=send)
        speaker.start()
        ingester.turn(for_s)
        stop.set()
        speaker.join()

    monkeypatch.setattr("telemetry.ingest.GATHER_S", 0.5)
    speak(1.2)
    assert len(writes) <= 4
    monkeypatch.setattr("telemetry.ingest.is_watched", lambda kind: True)
    speak(1.2)
    assert len(writes) >= 8


def test_what_has_gathered_is_written_with_few_statements_and_no_frame_is_made_for_nobody(
    replica, ingester, monkeypatch, django_assert_max_num_queries
):
    """Each second's row and each total is written once for the batch, however many samples it holds."""
    published: list[str] = []
    monkeypatch.setattr("telemetry.ingest.publish", lambda topic, frame: published.append(topic))
    monkeypatch.setattr("telemetry.ingest.is_watched", lambda kind: False)
    ingester.write([sample(replica, 1, counts(1), t_s=NOW_S)])
    total, gathered = counts(1), []
    for seq in range(2, 10):
        total = total + counts(seq)
        gathered.append(sample(replica, seq, total, t_s=NOW_S + seq, tokens=seq))
    # Two of the transaction; replicas, counters, board: read, and the last two written; the windows of a board; rollups
    # read, the two that are there written, and all others at once.
    with django_assert_max_num_queries(14):
        ingester.write(gathered)
    assert published == []
    assert Rollup.objects.filter(resolution_s=1).count() == 9
    for resolution in (1, 10, 60):
        assert (summed(resolution) == total).all()
    assert Board.objects.get().output_tokens == 9
    # Who comes then sees all of it.
    shown = Tally.of_row(EngineCounter.objects.get()).cube.counts_PNLE
    assert (shown == total).all()


def test_gathering_goes_on_over_turns_and_ends_when_somebody_comes(replica, ingester, monkeypatch):
    watched: list[bool] = []
    writes: list[int] = []
    monkeypatch.setattr("telemetry.ingest.is_watched", lambda kind: bool(watched))
    monkeypatch.setattr(ingester, "write", lambda samples: writes.append(len(samples)))
    client = redis.Redis.from_url(settings.REDIS_URL)
    client.delete(STREAM)
    client.xadd(STREAM, sample(replica, 1, counts(1)).entry())
    ingester.turn(0.3)
    client.xadd(STREAM, sample(replica, 2, counts(2)).entry())
    ingester.turn(0.3)
    assert writes == [1]
    watched.append(True)
    ingester.turn(0.3)
    assert writes == [1, 1]
