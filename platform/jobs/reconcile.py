"""The loop that finds work whose bell or whose worker was lost. It looks at rows alone, never at messages."""

from __future__ import annotations

import logging
from datetime import timedelta

from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_noop

from common.holders import is_gone
from common.loops import loop
from common.models import Lease
from jobs.choices import HELD, JobState
from jobs.dispatch import ring
from jobs.execution import job_lost
from jobs.models import Job

log = logging.getLogger(__name__)
PERIOD_S = 3.0
# A queued job that nobody took after so long is rung for again: the bell may have been lost with the broker.
RING_AGAIN = timedelta(seconds=10)
MAX_RINGS = 100
LEFT_ALONE = """
SELECT job.id, lease.expires_at >= now(), lease.holder
  FROM jobs_job job LEFT JOIN common_lease lease ON lease.resource = 'job:' || job.id WHERE job.state = ANY(%s)
"""
LOCK_LEASE = """
SELECT expires_at >= now(), holder FROM common_lease WHERE resource = %s FOR UPDATE
"""
LOST = gettext_noop("The worker was lost; the job goes on from its last checkpoint.")


@loop("jobs", every_s=PERIOD_S)
def reconcile_jobs() -> None:
    """One turn."""
    take_back_lost_jobs()
    ring_for_waiting_jobs()


def take_back_lost_jobs() -> int:
    """Put jobs back whose worker no longer holds them; return how many."""
    with connection.cursor() as cursor:
        cursor.execute(LEFT_ALONE, [[state.value for state in HELD]])
        found = [job_id for job_id, runs, holder in cursor.fetchall() if not _holds(runs, holder)]
    return sum(take_back(job_id) for job_id in found)


def take_back(job_id: int) -> bool:
    """Put one job back unless its lease came alive again while we looked."""
    with transaction.atomic():
        # First the lease, then the job: workers take the two rows in this order as well.
        if _is_held(job_id):
            return False
        job = Job.objects.select_for_update().filter(pk=job_id, state__in=HELD).first()
        if job is None:
            return False
        log.warning("job %s: the lease of %s (epoch %s) ran out", job_id, job.holder, job.epoch)
        Lease.objects.filter(resource=job.resource).update(holder=None, expires_at=None)
        job_lost(job, reason=LOST, epoch=job.epoch)
    return True


def _is_held(job_id: int) -> bool:
    """Whether somebody holds the lease now; its row stays locked until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute(LOCK_LEASE, [f"job:{job_id}"])
        row = cursor.fetchone()
    return row is not None and _holds(*row)


def _holds(runs: bool | None, holder: str | None) -> bool:
    """Whether a lease runs and its holder can still use it: a process of this machine that has ended cannot."""
    return bool(runs) and holder is not None and not is_gone(holder)


def ring_for_waiting_jobs() -> int:
    """Ring for every due job that no worker came for; return how many."""
    due = Q(not_before=None) | Q(not_before__lte=Now())
    unheard = Q(rung_at=None) | Q(rung_at__lt=Now() - RING_AGAIN)
    waiting = Job.objects.filter(due, unheard, state=JobState.QUEUED).order_by("id")
    ids = list(waiting.values_list("id", flat=True)[:MAX_RINGS])
    for job_id in ids:
        ring(job_id)
    return len(ids)
