"""Look-ups of jobs and their events, cut to one team."""

from __future__ import annotations

from django.db.models import QuerySet
from django.utils.translation import gettext as _

from accounts.models import Team
from common.errors import NotFound
from jobs.models import Job, JobEvent


def jobs_of(team: Team) -> QuerySet[Job]:
    """Return the team's jobs, newest first."""
    related = ("created_by", "base_version__model", "result_version__model")
    return Job.objects.filter(team=team).select_related(*related).order_by("-id")


def job_get(team: Team, pk: int) -> Job:
    """Return one of the team's jobs or raise NotFound."""
    job = jobs_of(team).filter(pk=pk).first()
    if job is None:
        raise NotFound(_("There is no job number %(number)s here.") % {"number": pk})
    return job


def events_after(job: Job, seq: int = 0) -> QuerySet[JobEvent]:
    """Return what the job told after event `seq`, oldest first."""
    return JobEvent.objects.filter(job=job, seq__gt=seq).order_by("seq")
