"""Every change of a job's state goes through here: the expected old state, the row, the event, the live frame."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db import transaction
from django.db.models.functions import Now
from django.utils.translation import gettext as _

from common.errors import Conflict
from common.states import transition
from jobs.choices import ENDED, JobState
from jobs.events import event_append
from jobs.models import Job


def job_move(
    job: Job, *, expected: Iterable[JobState], to: JobState, reason: str = "", epoch: int = 0, **changes: Any
) -> None:
    """Move a job and write the event, or raise Conflict and change nothing."""
    with transaction.atomic():
        changes["ended_at"] = Now() if to in ENDED else None
        try:
            transition(job, expected=[state.value for state in expected], to=to.value, **changes)
        except Conflict as error:
            raise Conflict(refusal(job, to)) from error
        event_append(job_id=job.pk, kind="state", payload={"state": to.value, "reason": reason}, epoch=epoch)
        job.refresh_from_db()


def refusal(job: Job, to: JobState) -> str:
    """Say why a job cannot become what was asked."""
    state = Job.objects.filter(pk=job.pk).values_list("state", flat=True).first()
    words = {"job": str(job), "state": JobState(state).label if state else "—", "wanted": to.label}
    return _("Job %(job)s cannot become “%(wanted)s”: it is “%(state)s”.") % words
