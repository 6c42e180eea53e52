"""Is all well? The figures, the worst fact, and what to do first on a new installation."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone
from django.utils.translation import gettext, ngettext

from accounts.models import Team
from common import figures
from common.told import ended
from console import navigation
from console.standing import Row, row_of
from console.traffic import Traffic, traffic_by_deployment, traffic_of
from deployments.selectors import deployments_of
from jobs.choices import OPEN, JobState
from jobs.models import Job
from layouts.models import Layout
from registry.models import Model, ModelVersion
from routing.models import Domain

RECENT = timedelta(hours=24)
SHOWN_JOBS = 6


@dataclass(frozen=True, slots=True)
class Worry:
    """Something that is not as it should be: how bad, in one sentence, where to look, and what callers feel of it."""

    lamp: str
    text: str
    url: str
    felt: str = ""


@dataclass(slots=True)
class Picture:
    """Everything the overview tells."""

    standings: list[Row] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    num_open_jobs: int = 0
    num_ended_jobs: int = 0
    worries: list[Worry] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)
    stations: list[dict[str, Any]] = field(default_factory=list)
    is_blank: bool = False

    @property
    def first_steps(self) -> bool:
        """Whether the way to the first answer still has stations ahead."""
        return any(step["state"] != "done" for step in self.stations)


def picture_of(team: Team) -> Picture:
    """Look at the team's things once."""
    traffic = traffic_by_deployment(team)
    standings = [row_of(one, traffic.get(one.pk)) for one in deployments_of(team)]
    whole = traffic_of(team)
    picture = Picture(
        standings=standings,
        jobs=jobs_of(team),
        num_open_jobs=open_jobs_of(team).count(),
        num_ended_jobs=lately_ended_of(team).count(),
        worries=[
            *_deployment_worries(standings),
            *_request_worries(standings, whole),
            *_job_worries(team),
        ],
        traffic=whole,
        stations=stations(team, standings),
    )
    picture.is_blank = not Model.objects.filter(team=team).exists()
    return picture


def jobs_of(team: Team) -> list[Job]:
    """Open jobs first, then those that ended in the last day; as many as the overview has rows for."""
    open_ones = list(open_jobs_of(team).order_by("-id")[:SHOWN_JOBS])
    return open_ones + list(lately_ended_of(team).order_by("-ended_at")[: SHOWN_JOBS - len(open_ones)])


def open_jobs_of(team: Team) -> QuerySet[Job]:
    """Every job of the team that has not ended."""
    return Job.objects.filter(team=team, state__in=OPEN)


def lately_ended_of(team: Team) -> QuerySet[Job]:
    """Every job of the team that ended in the last day."""
    return Job.objects.filter(team=team, ended_at__gte=timezone.now() - RECENT).exclude(state__in=OPEN)


def _deployment_worries(standings: list[Row]) -> list[Worry]:
    return [
        Worry(
            one.standing.lamp,
            one.worry,
            one.url,
            felt="" if one.serves else gettext("Requests to it are refused until it is back."),
        )
        for one in standings
        if one.worry
    ]


def _request_worries(standings: list[Row], whole: Traffic) -> list[Worry]:
    """What callers felt in the last hour: by deployment, else of all requests together."""
    url = navigation.address("gateway:keys") or "/"
    felt = gettext("Whoever sent these got no answer.")
    failing = [one for one in standings if one.traffic.is_failing]
    if failing:
        return [Worry("caution", _failed_requests(one), url, felt=felt) for one in failing]
    if not whole.is_failing:
        return []
    text = gettext("%(share)s of all requests of the last hour failed (%(failed)s of %(requests)s).")
    return [Worry("caution", text % _failed_figures(whole), url, felt=felt)]


def _failed_requests(row: Row) -> str:
    text = gettext(
        "%(share)s of the requests to %(name)s failed in the last hour (%(failed)s of %(requests)s)."
    )
    return text % {**_failed_figures(row.traffic), "name": row.deployment.name}


def _failed_figures(traffic: Traffic) -> dict[str, str]:
    return {
        "share": figures.percent(traffic.failed_share, 1),
        "failed": figures.number(traffic.failed),
        "requests": figures.number(traffic.requests),
    }


def _job_worries(team: Team) -> list[Worry]:
    since = timezone.now() - RECENT
    # What failed and was then done by a later run of the same kind needs nobody any more.
    later = Job.objects.filter(
        team=team, kind=OuterRef("kind"), state=JobState.SUCCEEDED, ended_at__gt=OuterRef("ended_at")
    )
    failed = Job.objects.filter(
        ~Exists(later), team=team, state__in=(JobState.FAILED, JobState.QUARANTINED), ended_at__gte=since
    ).order_by("-ended_at")
    return [
        Worry(
            "danger",
            _failure(job),
            _job_url(job),
        )
        for job in failed[:3]
    ]


def _failure(job: Job) -> str:
    reason = job.problem or gettext("No reason was told.")
    return gettext("The job “%(name)s” failed: %(reason)s") % {"name": job.name, "reason": reason}


def _job_url(job: Job) -> str:
    return f"{navigation.address('jobs:list') or '/'}{job.pk}/"


def verdict(picture: Picture) -> dict[str, str]:
    """The worst fact, and whether users feel it."""
    if picture.is_blank and picture.num_open_jobs:
        return {
            "state": "busy",
            "text": gettext("The first model is on its way."),
            "rest": gettext("Meanwhile the other stations can be prepared: domains and logs need no model."),
        }
    if picture.is_blank:
        return {
            "state": "off",
            "text": gettext("Nothing runs yet."),
            "rest": gettext(
                "The five stations below are the whole way; the first takes less than a minute and needs no GPU."
            ),
        }
    worst = next((w for w in picture.worries if w.felt), None) or next(iter(picture.worries), None)
    if worst is not None:
        return {"state": worst.lamp, "text": ended(worst.text), "rest": _felt(picture, worst)}
    serving = sum(one.serves for one in picture.standings)
    coming = next((one for one in picture.standings if one.is_coming), None)
    if not serving and coming is not None:
        text = gettext("%(name)s is on its way.") % {"name": coming.deployment.name}
        return {
            "state": "busy",
            "text": text,
            "rest": gettext("It answers as soon as its replica has loaded."),
        }
    if not serving:
        return {
            "state": "off",
            "text": gettext("Nothing serves yet."),
            "rest": gettext("The next station on the way is lit below."),
        }
    text = ngettext("%(count)s deployment answers.", "All %(count)s deployments answer.", serving)
    return {"state": "ok", "text": text % {"count": serving}, "rest": _running(picture)}


def _felt(picture: Picture, worst: Worry) -> str:
    if worst.felt:
        return worst.felt
    serving = sum(one.serves for one in picture.standings)
    if not serving:
        return gettext("No deployment answers at present.")
    text = ngettext(
        "Meanwhile %(count)s deployment answers.", "Meanwhile %(count)s deployments answer.", serving
    )
    return text % {"count": serving}


def _running(picture: Picture) -> str:
    count = picture.num_open_jobs
    if not count:
        return gettext("No job is running.")
    return ngettext("%(count)s job is running.", "%(count)s jobs are running.", count) % {"count": count}


def stations(team: Team, standings: list[Row]) -> list[dict[str, Any]]:
    """The way from nothing to an answer: each station done when its thing exists, the first other one lit."""
    done = (
        Model.objects.filter(team=team).exists(),
        Layout.objects.filter(team=team).exists(),
        Domain.objects.filter(map__team=team).exists(),
        ModelVersion.objects.filter(model__team=team, parent__isnull=False).exists(),
        any(one.serves for one in standings),
    )
    words = (
        (
            "models",
            gettext("Bring a model"),
            gettext("upload one, or take the small one"),
        ),
        ("layouts", gettext("Draw its experts"), gettext("see memory and cost at once")),
        ("domains", gettext("Map your domains"), gettext("which expert does what")),
        ("data", gettext("Train on your logs"), gettext("watch the load even out")),
        ("deployments", gettext("Serve"), gettext("behind one OpenAI address")),
    )
    lit = done.index(False) if False in done else None
    return [
        {
            "key": key,
            "title": title,
            "note": note,
            "state": "done" if done[index] else "now" if index == lit else "next",
            "url": navigation.page_of(key),
        }
        for index, (key, title, note) in enumerate(words)
    ]


def kpis(picture: Picture) -> list[dict[str, Any]]:
    """The strip: what went through the gateway in the last hour."""
    traffic = picture.traffic
    return [
        {
            "label": gettext("Requests"),
            "value": figures.number(
                traffic.requests_per_minute, 1 if traffic.requests_per_minute < 10 else 0
            ),
            "unit": gettext("/min"),
            "note": gettext("%(count)s in the last hour") % {"count": figures.number(traffic.requests)},
            "spark": traffic.request_series,
        },
        {
            "label": gettext("Failed"),
            "value": figures.percent(traffic.failed_share, 1) if traffic.requests else figures.MISSING,
            "unit": "",
            "note": gettext("of the last hour"),
            "spark": [],
        },
        {
            "label": gettext("First token p95"),
            "value": figures.number(traffic.first_token_p95_ms),
            "unit": "ms" if traffic.first_token_p95_ms is not None else "",
            "note": gettext("over the last hour"),
            "spark": [],
        },
        {
            "label": gettext("Tokens out"),
            "value": figures.compact_parts(traffic.output_tokens)[0],
            "unit": figures.compact_parts(traffic.output_tokens)[1],
            "note": gettext("in the last hour"),
            "spark": traffic.token_series,
        },
        {
            "label": gettext("Replicas ready"),
            "value": sum(one.standing.ready for one in picture.standings),
            "unit": "",
            "note": gettext("of %(count)s wanted")
            % {"count": sum(one.standing.wanted for one in picture.standings)},
            "spark": [],
        },
        {
            "label": gettext("Jobs running"),
            "value": picture.num_open_jobs,
            "unit": "",
            "note": _ended_note(picture),
            "spark": [],
        },
    ]


def _ended_note(picture: Picture) -> str:
    ended = picture.num_ended_jobs
    words = ngettext("%(count)s ended in the last day", "%(count)s ended in the last day", ended)
    return words % {"count": ended}
