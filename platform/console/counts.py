"""How many of each thing a team has, for the rail and the shelf. A room that is not there yet counts as nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.apps import apps
from django.db.models import QuerySet


def rows(app: str, model: str, team: Any, owner: str = "team", **where: Any) -> QuerySet[Any] | None:
    """The team's rows of a model, or None when there is no such model."""
    try:
        found = apps.get_model(app, model)
    except LookupError:
        return None
    return found._default_manager.filter(**{owner: team}, **where)


def count_of(app: str, model: str, owner: str = "team", **where: Any) -> Callable[[Any], int]:
    """A counter of a team's rows."""

    def count(team: Any) -> int:
        found = rows(app, model, team, owner, **where)
        return 0 if found is None else found.count()

    return count


models = count_of("registry", "Model")
layouts = count_of("layouts", "Layout")
domains = count_of("routing", "Domain", owner="map__team")
corpora = count_of("corpora", "Corpus")
deployments = count_of("deployments", "Deployment")
running_jobs = count_of("jobs", "Job", state__in=("queued", "running"))
