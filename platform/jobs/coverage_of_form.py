"""The coverage of what a tuning form names at the moment, valid or not."""

from __future__ import annotations

from typing import Any

from accounts.caller import Caller
from common.errors import DomainError
from corpora.selectors import corpus_get
from jobs.coverage import Coverage, Effort, coverage_of
from jobs.tune_form import TuneForm
from moe_core.spec import TuneSpec
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
    return coverage_of(routing, corpus.counts, effort, colours=colours, is_unsettled=corpus.is_unsettled)


def _effort(form: TuneForm, name: str, most: int) -> int:
    """A number of the form, or the specification's default while it is not one."""
    number = _number(form[name].value())
    return TuneSpec.model_fields[name].default if number is None else min(number, most)


def _number(value: Any) -> int | None:
    text = str(value if value is not None else "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
