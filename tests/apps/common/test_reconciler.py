"""The threads that turn loops: connected as long as they turn often, and alone while their lease holds."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from django.db import OperationalError
from django.db.backends.postgresql.base import DatabaseWrapper

from common.leases import lease_claim
from common.loops import Loop
from common.management.commands import reconciler
from common.management.commands.reconciler import Turner

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def connections(monkeypatch) -> list[str]:
    """The threads that connected, in their order."""
    opened: list[str] = []
    connect = DatabaseWrapper.get_new_connection

    def counted(self: DatabaseWrapper, parameters: dict) -> object:
        opened.append(threading.current_thread().name)
        return connect(self, parameters)

    monkeypatch.setattr(DatabaseWrapper, "get_new_connection", counted)
    return opened


def turned(turns: int, turn: Callable[[int], None] = lambda number: None) -> Turner:
    """A loop that was turned so often, stopped and joined."""
    stop, count = threading.Event(), 0

    def once() -> None:
        nonlocal count
        count += 1
        if count >= turns:
            stop.set()
        turn(count)

    turner = Turner(Loop("of-this-test", 0.001, once), "holder", stop)
    turner.start()
    turner.join(timeout=30)
    assert not turner.is_alive() and count == turns
    return turner


def test_a_loop_that_turns_often_connects_once_and_renews_its_lease_now_and_then(
    connections, monkeypatch
) -> None:
    renewed: list[object] = []
    monkeypatch.setattr(reconciler, "lease_renew", renewed.append)
    turned(40)
    assert connections.count("loop-of-this-test") == 1
    # A quarter of ten seconds lies between two; forty turns of a millisecond take less.
    assert len(renewed) <= 2


def test_after_a_fault_of_the_database_it_connects_anew(connections) -> None:
    def fail_first(number: int) -> None:
        if number == 1:
            raise OperationalError("the server closed the connection")

    turned(3, fail_first)
    assert connections.count("loop-of-this-test") == 2


def test_the_lease_is_given_back_at_the_end() -> None:
    turner = turned(2)
    assert turner.claim is not None
    assert lease_claim(resource="loop:of-this-test", holder="another", ttl_s=10) is not None


def test_a_lease_that_was_lost_is_seen_before_the_next_turn_that_is_due_for_it(monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(reconciler.time, "monotonic", lambda: clock[0])
    turns: list[int] = []
    turner = Turner(Loop("of-this-test", 0.001, lambda: turns.append(1)), "holder", threading.Event())
    turner.turn_if_ours()
    monkeypatch.setattr(
        reconciler, "lease_renew", lambda claim: (_ for _ in ()).throw(reconciler.StaleLease("lost"))
    )
    # Still held by the old claim, as the table says: nobody turns it twice.
    clock[0] = turner.ttl_s / 4
    turner.turn_if_ours()
    assert turner.claim is None and len(turns) == 1
