"""The domains of a deployment: a frozen copy of its map, with the colours that boards show them in."""

from __future__ import annotations

from typing import Any

from django.utils.translation import get_language
from django.utils.translation import gettext as _

from common.errors import Invalid
from common.told import told
from deployments.engine_settings import EngineSettings
from deployments.models import Deployment
from moe_core.errors import SpecError
from moe_core.spec import ModelSpec, RoutingSpec
from registry.models import ModelVersion
from routing.models import DomainMap
from routing.selectors import routing_spec

# What a deployment may say in place of its map.
PRIOR_SETTINGS = ("prior_mode", "prior_strength", "prior_floor")


def frozen_domains(domain_map: DomainMap | None, version: ModelVersion) -> dict[str, Any]:
    """Return the map as this revision will use it for ever; {} for none."""
    if domain_map is None:
        return {}
    domains = copy_of(domain_map)
    check_fits(domains, version)
    return domains


def copy_of(domain_map: DomainMap) -> dict[str, Any]:
    """Return the map by its own numbers, whatever it is served with."""
    data = routing_spec(domain_map).model_dump(mode="json")
    colours = {domain.code: domain.colour for domain in domain_map.domains.all()}
    data["domains"] = [{**domain, "colour": colours.get(domain["code"], 0)} for domain in data["domains"]]
    return {**data, "map": domain_map.pk, "map_revision": domain_map.revision, "map_name": domain_map.name}


def check_fits(domains: dict[str, Any], version: ModelVersion) -> None:
    """Raise Invalid when a version cannot be served with a frozen copy."""
    if domains:
        _check_fits(routing_of(domains), version)


def _check_fits(spec: RoutingSpec, version: ModelVersion) -> None:
    if version.is_dense:
        raise Invalid(
            _("%(version)s is dense: it has no experts to map domains to. Choose no domain map.")
            % {"version": version},
            fields={"domain_map": _("A dense version takes no domain map.")},
        )
    try:
        spec.check_fits(version.num_experts, version.moe_layers)
        spec.check_gate(version.gate, version.moe_layers)
    except SpecError as error:
        raise Invalid(told(str(error)), fields={"domain_map": told(str(error))}) from error


def check_prior(domains: dict[str, Any], settings: dict[str, Any], version: ModelVersion) -> None:
    """Raise Invalid where a frozen copy, with the prior of a deployment's settings, would mask too many experts."""
    moe = ModelSpec.parse(version.spec).moe
    if not domains or moe is None:
        return
    chosen = EngineSettings.parse(settings)
    try:
        routing = routing_served(domains, chosen)
        routing.check_mask(moe.num_experts, moe.top_k, moe.moe_layers, moe.twins)
    except SpecError as error:
        place = "settings.prior_mode" if chosen.prior_mode else "domain_map"
        raise Invalid(told(str(error)), fields={place: told(str(error))}) from error


def routing_of(domains: dict[str, Any]) -> RoutingSpec:
    """Return the frozen copy as the engine reads it."""
    known = {key: value for key, value in domains.items() if key in RoutingSpec.model_fields}
    plain = [
        {key: value for key, value in domain.items() if key != "colour"}
        for domain in known.pop("domains", [])
    ]
    return RoutingSpec.parse({**known, "domains": plain})


def routing_served(domains: dict[str, Any], chosen: EngineSettings) -> RoutingSpec:
    """Return the frozen copy as a deployment's engines are told it: with the prior that its own settings chose.

    A mode of the settings is one for every layer, so that the map's rules of single layers go with the map's mode.
    """
    routing = routing_of(domains)
    said = {name: getattr(chosen, name) for name in PRIOR_SETTINGS if getattr(chosen, name) is not None}
    rules: dict[str, Any] = {"prior_layers": {}} if chosen.prior_mode else {}
    return routing.model_copy(update={**said, **rules})


def codes_of(deployment: Deployment) -> tuple[str, ...]:
    """Return the codes that requests may name."""
    return tuple(domain["code"] for domain in deployment.domains.get("domains", ()))


def map_words(domains: dict[str, Any]) -> str:
    """Name the map that a frozen copy was taken from, with its revision; empty for none."""
    if "map_name" not in domains:
        return ""
    name = f"{domains['map_name']} r{domains['map_revision']}"
    return _("%(map)s, translated") % {"map": name} if domains.get("translated_to") else name


def shown_domains(deployment: Deployment) -> list[dict[str, Any]]:
    """Return code, name in the reader's language, colour and experts of each domain."""
    chinese = (get_language() or "en").startswith("zh")
    return [
        {
            "code": domain["code"],
            "name": domain["name_zh"] if chinese else domain["name_en"],
            "colour": domain.get("colour", 0),
            "experts": domain["experts"],
        }
        for domain in deployment.domains.get("domains", ())
    ]
