"""What a worker may do with a job: claim it, tell its progress, keep checkpoints, end it.

Every write happens in a transaction that holds only while the worker's lease does (`common.leases.lease_guarded`); a
worker that lost it gets StaleLease from each of these and must kill its child.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce, Now
from django.utils.translation import gettext_noop

from common.leases import Claim, lease_claim, lease_guarded, lease_release, lease_renew
from common.loops import wake
from jobs.choices import HELD, JobKind, JobState
from jobs.events import event_append
from jobs.models import MAX_ATTEMPTS, Checkpoint, Job, JobEvent
from jobs.states import job_move
from registry.models import ModelVersion

Wanted = Literal["cancel", "pause"]
FIRST_BACKOFF_S = 1.0
GIVEN_BACK = gettext_noop("The worker was told to stop; the job goes on from its last checkpoint.")
MAX_LOG_TAIL = 20_000


@dataclass(frozen=True, slots=True)
class JobClaim:
    """The right to work on one job, as of one epoch; `job` is the row as it was when it was claimed."""

    job: Job
    lease: Claim

    @property
    def job_id(self) -> int:
        """The job's number."""
        return self.job.pk

    @property
    def epoch(self) -> int:
        """The fencing number of this claim."""
        return self.lease.epoch


def job_claim(job_id: int, *, holder: str) -> JobClaim | None:
    """Take a queued job, counting the attempt before anything runs; None when there is nothing to do."""
    with transaction.atomic():
        lease = lease_claim(resource=f"job:{job_id}", holder=holder)
        if lease is None:
            return None
        due = Q(not_before=None) | Q(not_before__lte=Now())
        taken = Job.objects.filter(due, pk=job_id, state=JobState.QUEUED).update(
            state=JobState.RUNNING, attempts=F("attempts") + 1, epoch=lease.epoch, holder=holder,
            started_at=Coalesce(F("started_at"), Now()),
        )  # fmt: skip
        if taken != 1:
            transaction.set_rollback(True)
            return None
        job = Job.objects.select_related("team", "created_by", "base_version__model").get(pk=job_id)
        payload = {"state": JobState.RUNNING.value, "attempt": job.attempts, "holder": holder, "reason": ""}
        event_append(job_id=job_id, kind="state", payload=payload, epoch=lease.epoch)
    return JobClaim(job, lease)


def job_heartbeat(claim: JobClaim) -> None:
    """Prolong the lease, or raise StaleLease."""
    lease_renew(claim.lease)


def job_wanted(claim: JobClaim) -> Wanted | None:
    """Whether somebody asked this job to stop."""
    state = Job.objects.filter(pk=claim.job_id, epoch=claim.epoch).values_list("state", flat=True).first()
    if state == JobState.CANCELLING:
        return "cancel"
    return "pause" if state == JobState.PAUSING else None


def job_event(
    claim: JobClaim, kind: str, payload: Mapping[str, Any], *, stage: str = "", progress: float | None = None
) -> JobEvent:
    """Write one event, and how far the job is."""
    with lease_guarded(claim.lease):
        changes: dict[str, Any] = {"stage": stage[:30]} if stage else {}
        if progress is not None:
            changes["progress"] = min(1.0, max(0.0, progress))
        if changes:
            Job.objects.filter(pk=claim.job_id).update(**changes)
        return event_append(job_id=claim.job_id, kind=kind, payload=payload, epoch=claim.epoch)


def checkpoint_record(claim: JobClaim, *, path: Path, stage: str, step: int, sha256: str) -> Checkpoint:
    """Accept a complete checkpoint; one without this row is never gone on from."""
    with lease_guarded(claim.lease):
        row = Checkpoint.objects.create(
            job=claim.job, node=settings.NODE_NAME, path=str(path), stage=stage[:30], step=step, sha256=sha256,
            epoch=claim.epoch,
        )  # fmt: skip
        payload = {"stage": stage, "step": step, "sha256": sha256}
        event_append(job_id=claim.job_id, kind="checkpoint", payload=payload, epoch=claim.epoch)
    return row


def checkpoints_follow(claim: JobClaim, places: Mapping[int, Path]) -> None:
    """Say where accepted checkpoints lie now, by row: the new holder has linked them into its own folder."""
    with lease_guarded(claim.lease):
        for number, path in places.items():
            Checkpoint.objects.filter(pk=number, job_id=claim.job_id).update(path=str(path))


@contextmanager
def job_success(claim: JobClaim, result: Mapping[str, Any]) -> Iterator[list[ModelVersion]]:
    """Run the writes that publish a result and the end of the job as one; the body appends the version it made.

    Raises Conflict when somebody cancelled in the meantime: then nothing is published.
    """
    made: list[ModelVersion] = []
    with lease_guarded(claim.lease):
        Job.objects.select_for_update().get(pk=claim.job_id)
        yield made
        version = made[-1] if made else None
        job_move(
            claim.job, expected=[JobState.RUNNING, JobState.PAUSING], to=JobState.SUCCEEDED, epoch=claim.epoch,
            result=dict(result), result_version=version, progress=1.0, error="", error_code="",
        )  # fmt: skip
        _let_go(claim)


def job_fail(claim: JobClaim, *, code: str, message: str, log_tail: str = "") -> None:
    """End a job whose error would come again."""
    with lease_guarded(claim.lease):
        _end(claim, JobState.FAILED, code, message, log_tail)


def job_stopped(claim: JobClaim, *, log_tail: str = "") -> None:
    """The child stopped as it was asked to: cancelled or paused, as the row says."""
    with lease_guarded(claim.lease):
        wanted = Job.objects.select_for_update().get(pk=claim.job_id).state
        to = JobState.PAUSED if wanted == JobState.PAUSING else JobState.CANCELLED
        job_move(
            claim.job, expected=[JobState.CANCELLING, JobState.PAUSING], to=to, epoch=claim.epoch,
            log_tail=log_tail[-MAX_LOG_TAIL:], holder="",
        )  # fmt: skip
        _let_go(claim)


def job_crashed(claim: JobClaim, *, reason: str, log_tail: str = "") -> None:
    """The child ended without a word: another attempt after a while, or quarantine after the last."""
    with lease_guarded(claim.lease):
        job_lost(claim.job, reason=reason, log_tail=log_tail, epoch=claim.epoch, wait=True)
        _let_go(claim)


def job_give_back(claim: JobClaim, *, reason: str = GIVEN_BACK) -> None:
    """Return a job to the queue because this worker ends; the attempt does not count."""
    with lease_guarded(claim.lease):
        job = Job.objects.select_for_update().get(pk=claim.job_id)
        if job.state == JobState.RUNNING:
            job_move(
                job, expected=[JobState.RUNNING], to=JobState.QUEUED, reason=reason, epoch=claim.epoch,
                attempts=max(0, job.attempts - 1), rung_at=None, holder="",
            )  # fmt: skip
        else:
            job_lost(job, reason=reason, epoch=claim.epoch)
        _let_go(claim)


def job_lost(job: Job, *, reason: str, log_tail: str = "", epoch: int = 0, wait: bool = False) -> None:
    """Decide what becomes of a job whose attempt came to nothing: the caller holds its lease or its row."""
    job = Job.objects.select_for_update().get(pk=job.pk)
    log = {"log_tail": log_tail[-MAX_LOG_TAIL:]} if log_tail else {}
    common: dict[str, Any] = {"holder": "", "epoch": epoch, "reason": reason, **log}
    if job.state == JobState.CANCELLING:
        job_move(job, expected=[JobState.CANCELLING], to=JobState.CANCELLED, **common)
    elif job.state == JobState.PAUSING:
        job_move(job, expected=[JobState.PAUSING], to=JobState.PAUSED, **common)
    elif job.attempts >= MAX_ATTEMPTS:
        error: dict[str, Any] = {"error_code": "gave_up", "error": reason[:1000]}
        job_move(job, expected=[JobState.RUNNING], to=JobState.QUARANTINED, **error, **common)
    else:
        pause = backoff(job.attempts) if wait else timedelta(0)
        job_move(
            job,
            expected=[JobState.RUNNING],
            to=JobState.QUEUED,
            not_before=Now() + pause,
            rung_at=None,
            **common,
        )


def backoff(attempt: int) -> timedelta:
    """Four times as long after each attempt, give or take a quarter, so that many jobs do not come back at once."""
    return timedelta(seconds=FIRST_BACKOFF_S * 4 ** max(0, attempt - 1) * random.uniform(0.75, 1.25))  # noqa: S311 - jitter, no secret


def _end(claim: JobClaim, to: JobState, code: str, message: str, log_tail: str) -> None:
    job = Job.objects.select_for_update().get(pk=claim.job_id)
    if job.state == JobState.CANCELLING:
        to, code, message = JobState.CANCELLED, "", ""
    job_move(
        job, expected=HELD, to=to, reason=message[:1000], epoch=claim.epoch, error_code=code[:60],
        error=message[:1000], log_tail=log_tail[-MAX_LOG_TAIL:], holder="",
    )  # fmt: skip
    _let_go(claim)


def _let_go(claim: JobClaim) -> None:
    """Free the lease and let the reconciler look for the next job."""
    lease_release(claim.lease)
    wake("jobs")


def is_heavy(kind: str) -> bool:
    """Whether a job wants the machine for itself."""
    return kind in (JobKind.TUNE, JobKind.OPERATE)
