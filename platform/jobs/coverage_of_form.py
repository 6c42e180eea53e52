"""The coverage of what a tuning form names at the moment, valid or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.utils.translation import gettext as _

from accounts.caller import Caller
from common.errors import DomainError
from common.told import told
from corpora.selectors import corpus_get
from jobs.coverage import Coverage, Effort, coverage_of
from jobs.tune_form import TuneForm
from layouts.selectors import layout_get
from moe_core.errors import SpecError
from moe_core.spec import RoutingSpec, TuneSpec
from registry.models import ModelVersion
from registry.numbering import route, tuned_ancestor
from registry.selectors import version_get
from routing.models import DomainMap
from routing.selectors import map_get, routing_spec

MOST = {"specialise_steps": 1_000_000, "route_steps": 1_000_000, "tokens_per_batch": 1 << 20}


def coverage_for(caller: Caller, form: TuneForm) -> Coverage | None:
    """The rows of the form's logs for the form's map; None while one of the two is not chosen."""
    chosen = {name: _number(form[name].value()) for name in ("domain_map", "corpus")}
    if None in chosen.values():
        return None
    try:
        domain_map = map_get(caller.team, chosen["domain_map"] or 0)
        corpus = corpus_get(caller.team, chosen["corpus"] or 0)
        routing = routing_spec(domain_map)
    except DomainError:
        return None
    colours = {domain.code: domain.colour for domain in domain_map.domains.all()}
    effort = Effort(**{name: _effort(form, name, most) for name, most in MOST.items()})
    found = coverage_of(routing, corpus.counts, effort, colours=colours, is_unsettled=corpus.is_unsettled)
    misfits, doubts = _of_version(caller, form, routing, domain_map)
    return replace(
        found, refusals=(*misfits, *found.refusals), warnings=() if misfits else (*doubts, *found.warnings)
    )


def _of_version(
    caller: Caller, form: TuneForm, routing: RoutingSpec, domain_map: DomainMap
) -> tuple[list[str], list[str]]:
    """What speaks against the map for the chosen version or layout, and what makes it doubtful."""
    version_id, layout_id = (_number(form[name].value()) for name in ("model_version", "layout"))
    try:
        version = version_get(caller.team, version_id) if version_id else None
        layout = layout_get(caller.team, layout_id).layout_spec() if layout_id else None
    except DomainError:
        return [], []
    experts = layout.num_experts if layout else version.num_experts if version else 0
    layers = layout.moe_layers if layout else version.moe_layers if version else ()
    if not experts:
        return [], []
    try:
        routing.check_fits(experts, layers)
    except SpecError as error:
        return [told(str(error))], []
    return [], [] if layout or version is None else _renumbered(version, domain_map)


def _renumbered(version: ModelVersion, domain_map: DomainMap) -> list[str]:
    """A version whose experts have other numbers than when it was tuned with the map is not meant by it as it stands."""
    tuned = tuned_ancestor(version, domain_map.pk)
    way = tuned and route(tuned, version)
    if not tuned or not way or way.is_unchanged or tuned.lineage.get("map_revision") != domain_map.revision:
        return []
    sentence = _(
        "The map names experts by their numbers in %(tuned)s, and %(version)s numbers them otherwise or has copies; revise "
        "the map for it first."
    )
    return [sentence % {"tuned": tuned, "version": version}]


def _effort(form: TuneForm, name: str, most: int) -> int:
    """A number of the form, or the specification's default while it is not one."""
    number = _number(form[name].value())
    return TuneSpec.model_fields[name].default if number is None else min(number, most)


def _number(value: Any) -> int | None:
    text = str(value if value is not None else "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
