"""How many of each thing a team has, for the rail and the shelf."""

from __future__ import annotations

from accounts.models import Team
from corpora.models import Corpus
from deployments.models import Deployment
from jobs.choices import OPEN
from jobs.models import Job
from layouts.models import Layout
from registry.models import Model
from routing.models import Domain


def models(team: Team) -> int:
    """Models of the team."""
    return Model.objects.filter(team=team).count()


def layouts(team: Team) -> int:
    """Layouts of the team."""
    return Layout.objects.filter(team=team).count()


def domains(team: Team) -> int:
    """Domains of all maps of the team, each code once."""
    return Domain.objects.filter(map__team=team).values("code").distinct().count()


def corpora(team: Team) -> int:
    """Corpora of the team."""
    return Corpus.objects.filter(team=team).count()


def deployments(team: Team) -> int:
    """Deployments that were not taken away."""
    return Deployment.objects.filter(team=team, deleted_at=None).count()


def open_jobs(team: Team) -> int:
    """Jobs that have not ended."""
    return Job.objects.filter(team=team, state__in=OPEN).count()
