"""What deployments use: the domain map of each, and the layouts that its versions were made with."""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import Q
from django.utils.translation import gettext as _

from common.uses import finds_users
from deployments.models import Deployment


def users_of_map(team_id: int, pk: int) -> Iterable[str]:
    """Name the deployments whose domains were taken from a map."""
    return _names(Q(domain_map_id=pk) | Q(domains__map=pk), team_id)


def users_of_layout(team_id: int, pk: int) -> Iterable[str]:
    """Name the deployments whose version was made with a layout."""
    made_with = Q(desired_version__lineage__layout_id=pk) | Q(live_version__lineage__layout_id=pk)
    return _names(made_with, team_id)


def _names(condition: Q, team_id: int) -> Iterable[str]:
    found = Deployment.objects.filter(condition, team_id=team_id, deleted_at=None).order_by("name")
    for name in found.values_list("name", flat=True):
        yield _("the deployment “%(name)s”") % {"name": name}


finds_users("domain_map", users_of_map)
finds_users("layout", users_of_layout)
