"""What a team owns, read from the models themselves: whatever would be deleted with it, other than who is in it."""

from __future__ import annotations

from collections.abc import Iterator

from django.db import models
from django.utils.translation import gettext as _
from django.utils.translation import ngettext_lazy, pgettext

from accounts.models import ApiToken, Invitation, Membership, Team

# Means to get in, of no use without the team.
GO_WITH_THE_TEAM = (Membership, Invitation, ApiToken)
NAMES = {
    "registry.Model": ngettext_lazy("%(count)d model", "%(count)d models", "count"),
    "registry.Upload": ngettext_lazy("%(count)d upload", "%(count)d uploads", "count"),
    "layouts.Layout": ngettext_lazy("%(count)d layout", "%(count)d layouts", "count"),
    "routing.DomainMap": ngettext_lazy("%(count)d domain map", "%(count)d domain maps", "count"),
    "corpora.Corpus": ngettext_lazy("%(count)d corpus", "%(count)d corpora", "count"),
    "jobs.Job": ngettext_lazy("%(count)d job", "%(count)d jobs", "count"),
    "deployments.Deployment": ngettext_lazy(
        "%(count)d deployment (removed ones keep their history)",
        "%(count)d deployments (removed ones keep their history)",
        "count",
    ),
    "gateway.Usage": ngettext_lazy(
        "the usage of %(count)d request", "the usage of %(count)d requests", "count"
    ),
}


def team_owned_models() -> Iterator[tuple[type[models.Model], str]]:
    """Yield every model whose rows belong to a team, with the name of the column that says so."""
    for relation in Team._meta.get_fields(include_hidden=True):
        if not isinstance(relation, models.ManyToOneRel) or relation.on_delete is models.DO_NOTHING:
            continue
        if relation.related_model not in GO_WITH_THE_TEAM:
            yield relation.related_model, relation.field.name  # type: ignore[misc]


def owned_by(team: Team) -> list[str]:
    """Return what the team owns, in words with their counts; nothing for a team that can be deleted."""
    found = []
    for model, column in team_owned_models():
        count = model._base_manager.filter(**{column: team}).count()
        if count:
            words = NAMES.get(model._meta.label)
            found.append(words % {"count": count} if words else f"{count} {model._meta.verbose_name_plural}")
    return found


def why_not_deleted(team: Team) -> str:
    """Return the sentence that refuses to delete a team, or "" when nothing stands against it."""
    things = owned_by(team)
    if not things:
        return ""
    sentence = _(
        "%(team)s owns %(things)s. Only a team that owns nothing can be deleted; to close this one, "
        "remove everybody but one admin."
    )
    return sentence % {"team": team, "things": pgettext("between things in a sentence", ", ").join(things)}
