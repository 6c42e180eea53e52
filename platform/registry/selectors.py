"""Look-ups of models, versions and uploads; everything is cut to one team."""

from __future__ import annotations

from django.db.models import Max, Prefetch, QuerySet
from django.utils.translation import gettext as _

from accounts.models import Team
from common.errors import NotFound
from registry.models import Alias, Model, ModelVersion, Upload, VersionState

MAX_LINEAGE = 64


def models_of(team: Team) -> QuerySet[Model]:
    """Return the team's models, newest first, with their versions (newest first) and aliases."""
    versions = Prefetch("versions", ModelVersion.objects.order_by("-number"))
    aliases = Prefetch("aliases", Alias.objects.select_related("version").order_by("name"))
    return Model.objects.filter(team=team).prefetch_related(versions, aliases).order_by("-id")


def model_get(team: Team, pk: int) -> Model:
    """Return one of the team's models or raise NotFound."""
    model = models_of(team).filter(pk=pk).first()
    if model is None:
        raise NotFound(_("There is no model number %(number)s here.") % {"number": pk})
    return model


def versions_of(team: Team) -> QuerySet[ModelVersion]:
    """Return every version of the team, newest first."""
    return (
        ModelVersion.objects.filter(model__team=team).select_related("model", "parent__model").order_by("-id")
    )


def version_get(team: Team, pk: int) -> ModelVersion:
    """Return one of the team's versions or raise NotFound."""
    version = versions_of(team).filter(pk=pk).first()
    if version is None:
        raise NotFound(_("There is no model version number %(number)s here.") % {"number": pk})
    return version


def dense_versions(team: Team) -> QuerySet[ModelVersion]:
    """Return the versions that a layout can be laid over."""
    return versions_of(team).filter(state=VersionState.READY, spec__moe=None)


def moe_versions(team: Team) -> QuerySet[ModelVersion]:
    """Return the versions that have experts."""
    return versions_of(team).filter(state=VersionState.READY).exclude(spec__moe=None)


def ancestors(version: ModelVersion) -> list[ModelVersion]:
    """Return the line from the first ancestor to this version."""
    line = [version]
    while line[0].parent is not None and len(line) < MAX_LINEAGE:
        line.insert(0, line[0].parent)
    return line


def next_number(model: Model) -> int:
    """Return the number of the model's next version; the model's row must be locked."""
    last: int | None = model.versions.aggregate(last=Max("number"))["last"]
    return (last or 0) + 1


def uploads_of(team: Team) -> QuerySet[Upload]:
    """Return the team's uploads, newest first."""
    return Upload.objects.filter(team=team).select_related("created_by").order_by("-id")


def upload_get(team: Team, pk: int) -> Upload:
    """Return one of the team's uploads or raise NotFound."""
    upload = uploads_of(team).filter(pk=pk).first()
    if upload is None:
        raise NotFound(_("There is no upload number %(number)s here.") % {"number": pk})
    return upload
