"""The doorbell: the one module of the platform that knows Celery.

A message says "look at job 12" and nothing else. It may be lost, doubled or late: PostgreSQL says what is to be done.
"""

from __future__ import annotations

import logging

from celery import current_app
from django.db.models.functions import Now

from common.models import OutboxEvent
from common.outbox import handles, outbox_write
from jobs.choices import JobState
from jobs.models import Job

log = logging.getLogger(__name__)
TASK = "workers.run_job"
QUEUE = "jobs"
TOPIC = "jobs.ring"
# A bell that nobody heard for so long is of no use: the reconciler has rung again by then.
STALE_AFTER_S = 300


def ring_later(job_id: int) -> None:
    """Ring when the current transaction commits."""
    outbox_write(topic=TOPIC, payload={"job": job_id})


def ring(job_id: int) -> None:
    """Tell the workers to look at a job; raises when the broker does not answer."""
    current_app.send_task(TASK, args=[job_id], queue=QUEUE, expires=STALE_AFTER_S, retry=False)
    Job.objects.filter(pk=job_id, state=JobState.QUEUED).update(rung_at=Now())
    log.info("job %s: rang", job_id)


@handles(TOPIC)
def ring_event(event: OutboxEvent) -> None:
    """Deliver one ring of the outbox; a job that moved on needs none."""
    job_id = int(event.payload["job"])
    if Job.objects.filter(pk=job_id, state=JobState.QUEUED).exists():
        ring(job_id)
