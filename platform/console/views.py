"""Pages that put the apps together."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse

from accounts.access import Role, role_required
from common import figures
from console import navigation
from console import overview as summary
from console import playground as room
from console.lately import lately
from console.workers import builtin_offer, nodes


@role_required(Role.VIEWER)
def overview(request: HttpRequest) -> HttpResponse:
    """Is all well?"""
    team = request.caller.team  # type: ignore[attr-defined]
    picture = summary.picture_of(team)
    context = {
        "picture": picture,
        "verdict": {**summary.verdict(picture), "gap": "" if figures.is_chinese() else " "},
        "kpis": summary.kpis(picture),
        "lines": lately(team),
        "nodes": nodes(),
        "builtin": builtin_offer(),
        "import_url": navigation.address("jobs:import_model") or navigation.address("jobs:import"),
    }
    return render(request, "console/overview.html", context)


@role_required(Role.VIEWER)
def aspects(request: HttpRequest) -> HttpResponse:
    """The lamps of the shelf alone, for a page that stays open."""
    return render(request, "partials/aspects.html")


@role_required(Role.VIEWER)
def playground(request: HttpRequest) -> HttpResponse:
    """Ask a deployment something."""
    team = request.caller.team  # type: ignore[attr-defined]
    served, can_ask = room.served_names(team), room.is_served(team)
    domains = room.domains_of(team)
    chosen = request.GET.get("model", "")
    first = chosen if chosen in domains else next(iter(served), "")
    context = {
        "served": served,
        "can_ask": can_ask,
        "chosen": chosen,
        "domains": domains,
        "offered": domains.get(first, []),
        "starters": room.starters(team),
        "verdict": room.verdict(can_ask),
        "tokens_url": reverse("accounts:tokens"),
    }
    return render(request, "console/playground.html", context)
