"""Pages that put the apps together."""

from __future__ import annotations

from accounts.access import Role, role_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse

from console import playground as room


@role_required(Role.VIEWER)
def overview(request: HttpRequest) -> HttpResponse:
    """Is all well?"""
    return render(request, "console/overview.html", {})


@role_required(Role.VIEWER)
def playground(request: HttpRequest) -> HttpResponse:
    """Ask a deployment something."""
    team = request.caller.team  # type: ignore[attr-defined]
    served = room.served_names(team)
    context = {
        "served": served,
        "chosen": request.GET.get("model", ""),
        "domains": room.domains_of(team),
        "starters": room.starters(team),
        "verdict": room.verdict(served),
        "tokens_url": reverse("accounts:tokens"),
    }
    return render(request, "console/playground.html", context)
