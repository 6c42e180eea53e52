"""What went through the gateway in the last hour, from its usage rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db.models import Count, F, FloatField, Q, Sum
from django.db.models.aggregates import Aggregate
from django.db.models.functions import TruncMinute
from django.utils import timezone

from accounts.models import Team
from gateway.models import Usage
from gateway.selectors import FAILED

WINDOW = timedelta(hours=1)
MINUTES = 60
# From here on failures of the hour are a worry; a single one among few is not.
WORRYING_SHARE = 0.05
WORRYING_REQUESTS = 5


class Percentile(Aggregate):
    """PostgreSQL's percentile_cont over one column."""

    function = "percentile_cont"
    output_field = FloatField()
    template = "%(function)s(%(share)s) WITHIN GROUP (ORDER BY %(expressions)s)"

    def __init__(self, expression: str, share: float, **extra: Any) -> None:
        super().__init__(expression, share=float(share), **extra)


@dataclass(slots=True)
class Traffic:
    """One hour of requests."""

    requests: int = 0
    failed: int = 0
    output_tokens: int = 0
    first_token_p95_ms: float | None = None
    request_series: list[int] = field(default_factory=list)
    token_series: list[int] = field(default_factory=list)

    @property
    def requests_per_minute(self) -> float:
        """The mean of the hour."""
        return self.requests / MINUTES

    @property
    def tokens_per_second(self) -> float:
        """The mean of the hour."""
        return self.output_tokens / WINDOW.total_seconds()

    @property
    def failed_share(self) -> float:
        """Of all requests."""
        return self.failed / self.requests if self.requests else 0.0

    @property
    def is_failing(self) -> bool:
        """Whether so much failed that somebody should look."""
        return self.requests >= WORRYING_REQUESTS and self.failed_share >= WORRYING_SHARE


TOTALS = {
    "requests": Count("id"),
    "failed": Count("id", filter=Q(finish_reason__in=FAILED)),
    "output_tokens": Sum("completion_tokens", default=0),
    "first_token_p95_ms": Percentile("first_token_ms", 0.95, filter=Q(first_token_ms__isnull=False)),
}


def traffic_of(team: Team) -> Traffic:
    """The team's hour."""
    rows = Usage.objects.filter(team=team, at__gte=timezone.now() - WINDOW)
    found = Traffic(**rows.aggregate(**TOTALS))
    series = _series(
        rows.annotate(minute=TruncMinute("at"))
        .values("minute")
        .annotate(n=Count("id"), out=Sum("completion_tokens"))
    )
    found.request_series, found.token_series = series
    return found


def traffic_by_deployment(team: Team) -> dict[int, Traffic]:
    """The hour of each deployment."""
    rows = Usage.objects.filter(team=team, at__gte=timezone.now() - WINDOW, deployment__isnull=False)
    found: dict[int, Traffic] = {}
    row: Any
    for row in rows.values("deployment_id").annotate(**TOTALS):
        found[row["deployment_id"]] = Traffic(**{name: row[name] for name in TOTALS})
    minutes: dict[int, list[Any]] = defaultdict(list)
    by_minute = rows.annotate(minute=TruncMinute("at")).values("deployment_id", "minute")
    for row in by_minute.annotate(n=Count("id"), out=Sum(F("completion_tokens"))):
        minutes[row["deployment_id"]].append(row)
    for key, part in minutes.items():
        found[key].request_series, found[key].token_series = _series(part)
    return found


def _series(rows: Iterable[Any]) -> tuple[list[int], list[int]]:
    """One value a minute, quiet minutes as zero; empty when nothing came at all."""
    known = {row["minute"]: row for row in rows}
    if not known:
        return [], []
    now = timezone.now().replace(second=0, microsecond=0)
    minutes = [now - timedelta(minutes=back) for back in range(MINUTES - 1, -1, -1)]
    requests = [known[minute]["n"] if minute in known else 0 for minute in minutes]
    tokens = [known[minute]["out"] or 0 if minute in known else 0 for minute in minutes]
    return requests, tokens
