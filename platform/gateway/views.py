"""Health for supervisors and load balancers, and the page of the gateway and its keys."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from accounts.access import Role, public, role_required
from deployments.selectors import deployments_of
from gateway.health import checks, verdict
from gateway.selectors import keys_of, usage_of_team


@public
@require_safe
def healthz(request: HttpRequest) -> JsonResponse:
    """Alive: this process answers. It asks nobody else, so that a database outage restarts nothing."""
    return JsonResponse({"status": "alive"})


@public
@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    """Ready: what this process needs answers too; what does not is named."""
    found = checks()
    word = verdict(found)
    return JsonResponse({"status": word, "checks": found}, status=503 if word == "unready" else 200)


@role_required(Role.VIEWER)
@require_safe
def keys(request: HttpRequest) -> HttpResponse:
    """Who calls what, how much, and how to begin."""
    team = request.caller.team  # type: ignore[attr-defined]
    context = {
        "keys": keys_of(team),
        "usage": usage_of_team(team),
        "deployments": list(deployments_of(team)),
        "base_url": request.build_absolute_uri("/v1"),
    }
    return render(request, "gateway/keys.html", context)
