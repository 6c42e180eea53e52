"""What was used, by key and in all, cut to one team."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q, Sum
from django.utils import timezone

from accounts.models import ApiToken, Team
from gateway.errors import BUSY, UNAVAILABLE
from gateway.models import Quota, Usage

RECENT = dt.timedelta(hours=24)
NOT_TAKEN = (UNAVAILABLE, BUSY)
FAILED = ("error", "revoked", *NOT_TAKEN)


@dataclass(frozen=True, slots=True)
class KeyUse:
    """One key that may infer, and what it used."""

    token: ApiToken
    requests: int
    tokens: int
    month_used: int

    @property
    def is_live(self) -> bool:
        """Whether it still opens the door."""
        expired = self.token.expires_at is not None and self.token.expires_at <= timezone.now()
        return self.token.revoked_at is None and not expired


def keys_of(team: Team) -> list[KeyUse]:
    """Return the team's keys that may infer, newest first, with their last day and their month."""
    tokens = ApiToken.objects.filter(team=team, scopes__contains=["infer"]).select_related("created_by")
    spent = Sum("prompt_tokens", default=0) + Sum("completion_tokens", default=0)
    recent: dict[int, Any] = {
        row["token_id"]: row
        for row in Usage.objects.filter(team=team, at__gte=timezone.now() - RECENT)
        .values("token_id")
        .annotate(requests=Count("id"), spent=spent)
    }
    used = month_of(team)
    return [_key_use(token, recent.get(token.pk), used.get(token.pk, 0)) for token in tokens.order_by("-id")]


def month_of(team: Team) -> dict[int, int]:
    """Return what each key used this month (UTC): by its quota where it has a limit, else by its requests."""
    start = timezone.now().astimezone(dt.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    spent = Sum("prompt_tokens", default=0) + Sum("completion_tokens", default=0)
    rows = Usage.objects.filter(team=team, at__gte=start, token__monthly_token_limit=None)
    used = dict(rows.exclude(token=None).values_list("token_id").annotate(spent=spent))
    limited = Quota.objects.filter(token__team=team, month=start.date())
    return used | dict(limited.exclude(token__monthly_token_limit=None).values_list("token_id", "used"))


def _key_use(token: ApiToken, recent: dict[str, Any] | None, month_used: int) -> KeyUse:
    return KeyUse(
        token=token,
        requests=recent["requests"] if recent else 0,
        tokens=recent["spent"] if recent else 0,
        month_used=month_used,
    )


def usage_of_team(team: Team) -> dict[str, int]:
    """Return the team's last day."""
    rows = Usage.objects.filter(team=team, at__gte=timezone.now() - RECENT)
    return rows.aggregate(
        requests=Count("id"),
        failed=Count("id", filter=Q(finish_reason__in=FAILED)),
        not_taken=Count("id", filter=Q(finish_reason__in=NOT_TAKEN)),
        cancelled=Count("id", filter=Q(finish_reason="cancelled")),
        prompt=Sum("prompt_tokens", default=0),
        output=Sum("completion_tokens", default=0),
    )
