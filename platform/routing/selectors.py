"""Look-ups of domain maps, cut to one team, and the map as moe_core reads it."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.utils.translation import gettext as _

from accounts.models import Team
from common.errors import Invalid, NotFound
from common.told import told
from common.uses import tells_presence
from moe_core.errors import SpecError
from moe_core.spec import RoutingSpec
from routing.models import DomainMap


def maps_of(team: Team) -> QuerySet[DomainMap]:
    """Return the team's maps, newest first, with their domains."""
    return DomainMap.objects.filter(team=team).prefetch_related("domains").order_by("-id")


def map_get(team: Team, pk: int) -> DomainMap:
    """Return one of the team's maps or raise NotFound."""
    found = maps_of(team).filter(pk=pk).first()
    if found is None:
        raise NotFound(_("There is no domain map number %(number)s here.") % {"number": pk})
    return found


def routing_spec(domain_map: DomainMap) -> RoutingSpec:
    """Return the map as the router's training and the engine read it; raise Invalid when it is not complete."""
    try:
        return RoutingSpec.parse(routing_data(domain_map))
    except SpecError as error:
        raise Invalid(told(str(error))) from error


def routing_data(domain_map: DomainMap) -> dict[str, Any]:
    """Return the map as plain data in the shape of RoutingSpec."""
    domains = [
        {"code": domain.code, "name_en": domain.name_en, "name_zh": domain.name_zh, "experts": domain.experts}
        for domain in domain_map.domains.all()
    ]
    return {"domains": domains, "general_experts": domain_map.general_experts, **domain_map.policy}


def is_present(team_id: int, pk: int) -> bool:
    """Return whether the team still has it."""
    return DomainMap.objects.filter(team_id=team_id, pk=pk).exists()


tells_presence("domain_map", is_present)
