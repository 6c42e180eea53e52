"""How long rollups are kept: fine ones shortly, coarse ones long."""

from __future__ import annotations

import datetime as dt
import time

from django.db.models import F, Q
from django.utils import timezone

from common.loops import loop
from deployments.states import ENDED
from telemetry.models import EngineCounter, Rollup

KEPT_S = {1: 15 * 60, 10: 6 * 3600, 60: 30 * 86_400}
# Totals of an engine that ended; its last words have long arrived.
COUNTERS_KEPT = dt.timedelta(hours=1)


@loop("telemetry-retention", every_s=60)
def forget_old() -> None:
    """Delete what is older than its resolution is kept."""
    now = int(time.time())
    for resolution, kept in KEPT_S.items():
        Rollup.objects.filter(resolution_s=resolution, start_s__lt=now - kept).delete()
    over = Q(replica__state__in=ENDED) | Q(epoch__lt=F("replica__epoch"))
    EngineCounter.objects.filter(over, at__lt=timezone.now() - COUNTERS_KEPT).delete()
