"""The first sentence of the page of all jobs."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from accounts.models import Team
from common.verdict import Verdict
from jobs.choices import HELD, JobState
from jobs.models import Job

RECENT = timedelta(days=1)


def list_verdict(team: Team) -> Verdict:
    """Does anything need a hand, and what is at work?"""
    jobs = Job.objects.filter(team=team)
    if not jobs.exists():
        return Verdict(
            "off", _("No job yet."), _("An import brings a model in; a tuning run makes a better one of it.")
        )
    running = jobs.filter(state__in=HELD).count()
    waiting = jobs.filter(state=JobState.QUEUED).count()
    rest = _at_work(running, waiting)
    bad = jobs.filter(state__in=[JobState.FAILED, JobState.QUARANTINED], ended_at__gt=timezone.now() - RECENT)
    failed = bad.order_by("-ended_at").first()
    if failed is not None:
        return Verdict("danger", _("%(job)s failed within the last day.") % {"job": str(failed)}, rest)
    if running or waiting:
        return Verdict("busy" if running else "caution", rest)
    return Verdict("ok", _("Nothing is at work, and nothing waits."))


def _at_work(running: int, waiting: int) -> str:
    """How many jobs are at work, and how many wait when any does."""
    sentences = [
        ngettext("%(count)s job is at work.", "%(count)s jobs are at work.", running) % {"count": running}
    ]
    if waiting:
        sentences.append(
            ngettext("%(count)s job waits.", "%(count)s jobs wait.", waiting) % {"count": waiting}
        )
    return " ".join(sentences)
