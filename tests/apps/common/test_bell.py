"""Words that are rung are heard at once, and who waits for them takes next to no processor time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from django.db import connection, transaction

from common.bell import STOP_WITHIN_S, hear
from common.loops import wake

pytestmark = pytest.mark.django_db(transaction=True)
LISTENERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%%'"


class Listener(threading.Thread):
    """Somebody who listens, and how it ended."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.words: queue.Queue[str] = queue.Queue()
        self.stopping = threading.Event()
        self.error: psycopg.Error | None = None

    def run(self) -> None:
        try:
            hear(self.words.put, self.stopping)
        except psycopg.Error as error:
            self.error = error
        finally:
            connection.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    started = Listener()
    started.start()
    deadline = time.monotonic() + 20
    while not backends() and time.monotonic() < deadline:
        time.sleep(0.02)
    yield started
    started.stopping.set()
    started.join(timeout=20)
    assert not started.is_alive()


def backends() -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(LISTENERS)
        return [pid for (pid,) in cursor.fetchall()]


def test_words_are_heard_in_their_order_when_their_transaction_commits(listener) -> None:
    with transaction.atomic():
        wake("first")
        wake("second")
        with pytest.raises(queue.Empty):
            listener.words.get(timeout=0.2)
    wake("third")
    # Sooner than a look every second would be.
    assert [listener.words.get(timeout=STOP_WITHIN_S / 2) for _ in range(3)] == ["first", "second", "third"]


def test_who_is_cut_off_is_told(listener) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", backends())
    listener.join(timeout=20)
    assert isinstance(listener.error, psycopg.OperationalError)


def test_to_wait_takes_a_wake_up_a_second_and_not_ten(listener) -> None:
    before = voluntary_switches(listener)
    time.sleep(2.2)
    assert voluntary_switches(listener) - before <= 8


def voluntary_switches(thread: threading.Thread) -> int:
    """How often a thread has gone to sleep."""
    with open(f"/proc/self/task/{thread.native_id}/status", encoding="ascii") as file:
        found = [line for line in file if line.startswith("voluntary_ctxt_switches")]
    return int(found[0].split()[1])
