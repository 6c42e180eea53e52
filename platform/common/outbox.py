"""The transactional outbox: say it in the same transaction, deliver it afterwards, at least once.

A lower room never imports a higher one; it writes an event, and whoever cares registers a handler for its topic.
Handlers must be idempotent: a relay killed after delivery and before the mark delivers the same event again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from common.loops import loop, wake
from common.models import OutboxEvent

log = logging.getLogger(__name__)

Handler = Callable[[OutboxEvent], None]
_handlers: dict[str, list[Handler]] = defaultdict(list)
BATCH = 50
SLOWEST_RETRY = timedelta(minutes=5)


def outbox_write(*, topic: str, payload: dict[str, Any]) -> OutboxEvent:
    """Write one event in the current transaction and ring the relay when it commits."""
    event = OutboxEvent.objects.create(topic=topic, payload=payload)
    wake("outbox")
    return event


def handles(topic: str) -> Callable[[Handler], Handler]:
    """Register a handler for a topic (import the module in the app's `ready`)."""

    def register(handler: Handler) -> Handler:
        _handlers[topic].append(handler)
        return handler

    return register


def deliver_due() -> int:
    """Deliver every event that is due; return how many were delivered."""
    delivered = 0
    while (found := _deliver_one()) is not None:
        delivered += found
    return delivered


def _deliver_one() -> int | None:
    """Deliver the oldest due event while its row is locked; None when nothing is due."""
    with transaction.atomic():
        event = (
            OutboxEvent.objects.select_for_update(skip_locked=True)
            .filter(delivered_at=None, not_before__lte=Now())
            .order_by("id")
            .first()
        )
        if event is None:
            return None
        try:
            with transaction.atomic():
                for handler in _handlers[event.topic]:
                    handler(event)
        except Exception as error:
            return _postpone(event, error)
        OutboxEvent.objects.filter(pk=event.pk).update(delivered_at=Now(), attempts=event.attempts + 1)
        return 1


def _postpone(event: OutboxEvent, error: Exception) -> int:
    """Try again later, twice as late each time."""
    wait = min(SLOWEST_RETRY, timedelta(seconds=2 ** min(event.attempts, 9)))
    log.error("outbox event %s (%s) failed; next try in %s", event.pk, event.topic, wait, exc_info=error)
    OutboxEvent.objects.filter(pk=event.pk).update(
        attempts=event.attempts + 1,
        not_before=Now() + wait,
        last_error=f"{type(error).__name__}: {error}"[:500],
    )
    return 0


@loop("outbox", every_s=2)
def relay() -> None:
    """Deliver what is due."""
    deliver_due()
