"""A lease excludes, expires, fences and never moves back."""

from __future__ import annotations

from threading import Barrier, Thread

import pytest
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now

from common.errors import StaleLease
from common.leases import Claim, lease_claim, lease_guarded, lease_release, lease_renew
from common.models import Lease

pytestmark = pytest.mark.django_db(transaction=True)


def claimed(holder: str) -> Claim:
    claim = lease_claim(resource="job:1", holder=holder, ttl_s=30)
    assert claim is not None
    return claim


def test_it_excludes_a_second_holder_until_it_is_given_back() -> None:
    first = claimed("a")
    assert lease_claim(resource="job:1", holder="b") is None
    lease_release(first)
    assert claimed("b").epoch == first.epoch + 1


def test_it_refuses_every_write_of_a_holder_whose_time_ran_out() -> None:
    first = claimed("a")
    Lease.objects.update(expires_at=Now() - (F("expires_at") - F("heartbeat_at")))
    second = claimed("b")
    assert second.epoch == first.epoch + 1
    with pytest.raises(StaleLease):
        lease_renew(first)
    with pytest.raises(StaleLease), lease_guarded(first):
        raise AssertionError("a stale holder must not get here")
    lease_renew(second)
    with lease_guarded(second):
        Lease.objects.filter(resource="job:1").update(heartbeat_at=Now())


def test_it_refuses_a_late_holder_even_when_nobody_else_took_over() -> None:
    claim = claimed("a")
    Lease.objects.update(expires_at=Now() - (F("expires_at") - F("heartbeat_at")))
    with pytest.raises(StaleLease):
        lease_renew(claim)


def test_of_many_claimers_at_once_exactly_one_wins() -> None:
    for number in range(10):
        barrier, wins = Barrier(8), []

        def claim(
            name: str, barrier: Barrier = barrier, wins: list[Claim] = wins, number: int = number
        ) -> None:
            barrier.wait()
            try:
                got = lease_claim(resource=f"race:{number}", holder=name)
                if got:
                    wins.append(got)
            finally:
                connection.close()

        threads = [Thread(target=claim, args=(str(i),)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 1
