"""Events are delivered once they are committed, and again when a handler fails."""

from __future__ import annotations

import pytest
from django.db import transaction
from django.db.models.functions import Now

from common import outbox
from common.models import OutboxEvent
from common.outbox import deliver_due, handles, outbox_write

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(outbox, "_handlers", outbox.defaultdict(list))
    said: list[int] = []
    handles("test.said")(lambda event: said.append(event.payload["n"]))
    return said


def test_it_delivers_in_order_and_only_once(heard: list[int]) -> None:
    for n in range(3):
        outbox_write(topic="test.said", payload={"n": n})
    assert deliver_due() == 3
    assert deliver_due() == 0
    assert heard == [0, 1, 2]


def test_what_is_rolled_back_is_never_said(heard: list[int]) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        outbox_write(topic="test.said", payload={"n": 1})
        _ = 1 / 0
    assert deliver_due() == 0
    assert heard == []


def test_a_failing_handler_postpones_its_event_and_no_other(heard: list[int]) -> None:
    calls = []

    @handles("test.bad")
    def fail_once(event: OutboxEvent) -> None:
        calls.append(event.pk)
        if len(calls) == 1:
            raise ValueError("not today")

    bad = outbox_write(topic="test.bad", payload={})
    outbox_write(topic="test.said", payload={"n": 7})
    assert deliver_due() == 1
    bad.refresh_from_db()
    assert heard == [7]
    assert bad.delivered_at is None
    assert "not today" in bad.last_error
    OutboxEvent.objects.filter(pk=bad.pk).update(not_before=Now())
    assert deliver_due() == 1
    assert len(calls) == 2
