"""The audit log: append-only, one line a change, in the same transaction, chained by hashes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from django.db import connection, transaction
from django.utils import timezone

from accounts.caller import Caller
from accounts.models import AuditEvent, Team, User

CHAIN_LOCK = 0x7475726E  # one writer at a time extends the chain
GENESIS = "0" * 64


def audit_record(
    *,
    caller: Caller | None,
    action: str,
    target: object,
    team: Team | None = None,
    actor: str = "",
    **detail: Any,
) -> AuditEvent:
    """Write one line: who did what to which thing. `detail` must be JSON and hold no secret.

    Without a caller, `team` and `actor` say whose line it is; nobody named is the system.
    """
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [CHAIN_LOCK])
        last = AuditEvent.objects.order_by("-id").values_list("hash", flat=True).first() or GENESIS
        event = AuditEvent(
            at=timezone.now(),
            team=caller.team if caller else team,
            actor=caller.name if caller else (actor or "system")[:200],
            action=action,
            target=str(target)[:200],
            detail=detail,
            previous_hash=last,
        )
        event.hash = line_hash(event)
        event.save()
    return event


def audit_person(*, user: User, action: str, actor: str = "", **detail: Any) -> None:
    """Write one line about a person into the log of each of their teams, for it concerns them all."""
    teams: list[Team | None] = [*Team.objects.filter(memberships__user=user).order_by("id")]
    for team in teams or [None]:
        audit_record(caller=None, action=action, target=user.get_username(), team=team, actor=actor, **detail)


def line_hash(event: AuditEvent) -> str:
    """Return the hash of one line together with the one before it."""
    line = [
        event.previous_hash,
        event.at.isoformat(),
        event.team_id,
        event.actor,
        event.action,
        event.target,
        event.detail,
    ]
    return hashlib.sha256(json.dumps(line, sort_keys=True, default=str).encode()).hexdigest()


def audit_verify() -> int | None:
    """Return the id of the first line that was tampered with, or None when the chain holds."""
    before = GENESIS
    for event in AuditEvent.objects.order_by("id").iterator():
        if event.previous_hash != before or event.hash != line_hash(event):
            return event.pk
        before = event.hash
    return None
