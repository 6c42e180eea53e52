"""What people and programs can do with jobs. Workers have `jobs.execution`."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from accounts.access import Role
from accounts.audit import audit_record
from accounts.caller import Caller
from common.errors import Busy
from jobs.choices import OPEN, RETRYABLE, JobState
from jobs.dispatch import ring_later
from jobs.events import event_append
from jobs.models import Job, JobArtifact
from jobs.resolve import resolve
from jobs.selectors import job_get
from jobs.states import job_move

MAX_OPEN_JOBS = 50


@transaction.atomic
def job_submit(
    *, caller: Caller, kind: str, spec: Any, name: str = "", cloned_from: Job | None = None
) -> Job:
    """Check a specification, freeze what it names, and ring for a worker when this commits."""
    caller.must_be(Role.EDITOR)
    waiting = Job.objects.filter(team=caller.team, state__in=OPEN).count()
    if waiting >= MAX_OPEN_JOBS:
        raise Busy(
            _("The team has %(count)s open jobs, as many as it may; wait for one or cancel one.")
            % {"count": waiting},
            retry_after_s=30,
        )
    resolved = resolve(caller=caller, kind=kind, spec=spec)
    job = Job.objects.create(
        team=caller.team,
        created_by=caller.user,
        kind=kind,
        name=(name.strip() or resolved.name)[:120],
        spec=resolved.spec,
        inputs=resolved.inputs,
        base_version=resolved.base_version,
        cloned_from=cloned_from,
    )
    JobArtifact.objects.bulk_create(
        JobArtifact(job=job, name=name, artifact_id=sha256) for name, sha256 in resolved.artifacts.items()
    )
    event_append(job_id=job.pk, kind="state", payload={"state": JobState.QUEUED.value, "reason": ""})
    ring_later(job.pk)
    audit_record(caller=caller, action="job.submitted", target=job, kind=kind)
    job.refresh_from_db()
    return job


@transaction.atomic
def job_cancel(*, caller: Caller, job_id: int) -> Job:
    """Stop a job for good: at once when nobody works on it, else after the present step."""
    job = _for_change(caller, job_id)
    if job.state in (JobState.RUNNING, JobState.PAUSING):
        job_move(job, expected=[JobState.RUNNING, JobState.PAUSING], to=JobState.CANCELLING)
    else:
        job_move(job, expected=[JobState.QUEUED, JobState.PAUSED], to=JobState.CANCELLED)
    audit_record(caller=caller, action="job.cancelled", target=job)
    return job


@transaction.atomic
def job_pause(*, caller: Caller, job_id: int) -> Job:
    """Halt a job so that it can go on later from where it stands."""
    job = _for_change(caller, job_id)
    if job.state == JobState.QUEUED:
        job_move(job, expected=[JobState.QUEUED], to=JobState.PAUSED)
    else:
        job_move(job, expected=[JobState.RUNNING], to=JobState.PAUSING)
    audit_record(caller=caller, action="job.paused", target=job)
    return job


@transaction.atomic
def job_resume(*, caller: Caller, job_id: int) -> Job:
    """Go on with a paused job, from its last checkpoint."""
    job = _for_change(caller, job_id)
    _queue_again(job, [JobState.PAUSED])
    audit_record(caller=caller, action="job.resumed", target=job)
    return job


@transaction.atomic
def job_retry(*, caller: Caller, job_id: int) -> Job:
    """Try a job again that ended without a result: same inputs, from its last checkpoint when there is one."""
    job = _for_change(caller, job_id)
    _queue_again(job, list(RETRYABLE))
    audit_record(caller=caller, action="job.retried", target=job)
    return job


def job_clone(*, caller: Caller, job_id: int) -> Job:
    """Submit the same specification as a new job; rows that it names are read as they are now."""
    caller.must_be(Role.EDITOR)
    job = job_get(caller.team, job_id)
    return job_submit(caller=caller, kind=job.kind, spec=job.spec, name=job.name, cloned_from=job)


def _for_change(caller: Caller, job_id: int) -> Job:
    """The team's job with its row locked, so that the state that is read is the state that is changed."""
    caller.must_be(Role.EDITOR)
    job = job_get(caller.team, job_id)
    return Job.objects.select_for_update(of=("self",)).get(pk=job.pk)


def _queue_again(job: Job, expected: list[JobState]) -> None:
    """Put a job back in the queue by the hand of a person, who gives it its attempts back."""
    started = None if job.has_ended else job.started_at
    fresh: dict[str, Any] = {
        "attempts": 0,
        "not_before": None,
        "rung_at": None,
        "error": "",
        "error_code": "",
        "log_tail": "",
        "holder": "",
    }
    job_move(job, expected=expected, to=JobState.QUEUED, started_at=started, **fresh)
    ring_later(job.pk)
