"""Domains that keep their experts while these get other numbers: a map is translated from one version to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from common.errors import Invalid
from common.figures import listed
from deployments.domains import check_fits, copy_of
from registry.models import ModelVersion
from registry.numbering import Route, route, tuned_ancestor
from routing.models import DomainMap

# The refusal that a confirmation lifts.
EXPERTS_GONE = "experts_gone"


@dataclass(frozen=True, slots=True)
class Proposal:
    """The map that a version is most likely served with, and whether its numbers are those of an ancestor."""

    map_id: int
    is_translated: bool
    # Whether some of its experts are in the version no more, so that somebody has to decide.
    is_short: bool = False


def kept_domains(
    domains: dict[str, Any], before: ModelVersion, now: ModelVersion, *, confirmed: bool = False
) -> dict[str, Any]:
    """Return an earlier frozen copy as another version is served with it: the same experts, by its numbers.

    Versions of no common ancestor keep the numbers as they are. Raises Invalid for what does not fit, and, unless it is
    `confirmed`, where a mapped expert is gone.
    """
    way = route(before, now) if domains and not now.is_dense else None
    if way is not None and not way.is_unchanged:
        return translated(domains, way, now, confirmed=confirmed)
    check_fits(domains, now)
    return domains


def translated_domains(
    domain_map: DomainMap, version: ModelVersion, *, confirmed: bool = False
) -> dict[str, Any]:
    """Return the frozen copy of a map whose numbers are those of the ancestor that was tuned with it."""
    tuned = tuned_ancestor(version, domain_map.pk)
    way = tuned and route(tuned, version)
    if not way:
        raise Invalid(
            _("%(version)s was not made of a version that was tuned with %(map)s; use the map as it is.")
            % {"version": version, "map": domain_map},
            fields={"domain_map": _("Nothing tells which experts it means.")},
        )
    return translated(copy_of(domain_map), way, version, confirmed=confirmed)


def translated(
    domains: dict[str, Any], way: Route, version: ModelVersion, *, confirmed: bool = False
) -> dict[str, Any]:
    """Return a frozen copy with the numbers that its experts and layers have at the end of a way.

    Rules of layers that were left out go with these.
    """
    followed = {one["code"]: way.follow(one["experts"], one["code"]) for one in domains["domains"]}
    general = way.follow(domains["general_experts"])
    lost = {code: one.lost for code, one in {**followed, "": general}.items() if one.lost}
    if lost and not confirmed:
        _refuse_lost(lost, version)
    if empty := [code for code, one in followed.items() if not one.experts]:
        sentence = _("Of %(domains)s no expert is left in %(version)s; choose another domain map.")
        raise Invalid(
            sentence % {"domains": listed(empty), "version": version},
            fields={"domain_map": _("Choose another map, or none.")},
        )
    changed = {
        **domains,
        "domains": [{**one, "experts": followed[one["code"]].experts} for one in domains["domains"]],
        "general_experts": general.experts,
        "prior_layers": _rules_of_layers(domains, way),
        "translated_to": version.pk,
    }
    check_fits(changed, version)
    return changed


def _rules_of_layers(domains: dict[str, Any], way: Route) -> dict[str, Any]:
    numbers = {layer: way.follow_layer(int(layer)) for layer in domains.get("prior_layers", {})}
    return {str(now): domains["prior_layers"][layer] for layer, now in numbers.items() if now is not None}


def _refuse_lost(lost: dict[str, list[int]], version: ModelVersion) -> None:
    words = [
        _("%(experts)s of %(domain)s")
        % {"experts": listed(f"E{expert}" for expert in experts), "domain": code or _("no domain")}
        for code, experts in lost.items()
    ]
    sentence = _(
        "These experts are not in %(version)s any more, or not under one number in all layers: %(experts)s. Choose another "
        "domain map, or confirm that it is served without them."
    )
    refusal = sentence % {"version": version, "experts": listed(words)}
    raise Invalid(refusal, code=EXPERTS_GONE, fields={"domain_map": refusal})


def proposal_for(version: ModelVersion) -> Proposal | None:
    """Return the map that a version, or the nearest ancestor whose experts it still has, was tuned with."""
    tuned = tuned_ancestor(version)
    if tuned is None:
        return None
    way, pk = route(tuned, version), int(tuned.lineage["map_id"])
    domain_map = DomainMap.objects.filter(pk=pk, team_id=version.model.team_id).first()
    if way is None or way.is_unchanged or domain_map is None or not _is_as_tuned(domain_map, tuned):
        return Proposal(pk, is_translated=False)
    lost = any(way.follow(experts).lost for experts in _experts_of(domain_map).values())
    return Proposal(pk, is_translated=True, is_short=lost)


def _is_as_tuned(domain_map: DomainMap, tuned: ModelVersion) -> bool:
    """Whether the map names the experts as it did then; who changed them since may have meant those of now."""
    then = (tuned.lineage.get("tune") or {}).get("routing")
    if not then:
        return True
    experts = {one["code"]: one["experts"] for one in then["domains"]}
    return _experts_of(domain_map) == {**experts, "": list(then["general_experts"])}


def _experts_of(domain_map: DomainMap) -> dict[str, list[int]]:
    """The experts by domain; those of no domain under ""."""
    experts = {one.code: list(one.experts) for one in domain_map.domains.all()}
    return {**experts, "": list(domain_map.general_experts)}
