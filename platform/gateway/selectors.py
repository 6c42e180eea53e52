"""What was used, by key and in all, cut to one team."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q, Sum
from django.utils import timezone

from accounts.models import ApiToken, Team
from gateway.models import Quota, Usage

RECENT = dt.timedelta(hours=24)
FAILED = ("error", "revoked")


@dataclass(frozen=True, slots=True)
class KeyUse:
    """One key that may infer, and what it used."""

    token: ApiToken
    requests: int
    tokens: int
    month_used: int
    month_reserved: int

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
    month = timezone.now().date().replace(day=1)
    quotas = {row.token_id: row for row in Quota.objects.filter(token__team=team, month=month)}
    return [_key_use(token, recent.get(token.pk), quotas.get(token.pk)) for token in tokens.order_by("-id")]


def _key_use(token: ApiToken, recent: dict[str, Any] | None, quota: Quota | None) -> KeyUse:
    return KeyUse(
        token=token,
        requests=recent["requests"] if recent else 0,
        tokens=recent["spent"] if recent else 0,
        month_used=quota.used if quota else 0,
        month_reserved=quota.reserved if quota else 0,
    )


def usage_of_team(team: Team) -> dict[str, int]:
    """Return the team's last day."""
    rows = Usage.objects.filter(team=team, at__gte=timezone.now() - RECENT)
    return rows.aggregate(
        requests=Count("id"),
        failed=Count("id", filter=Q(finish_reason__in=FAILED)),
        cancelled=Count("id", filter=Q(finish_reason="cancelled")),
        prompt=Sum("prompt_tokens", default=0),
        output=Sum("completion_tokens", default=0),
    )
