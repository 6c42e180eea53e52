"""Pages that put the apps together."""

from __future__ import annotations

from accounts.access import Role, role_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


@role_required(Role.VIEWER)
def overview(request: HttpRequest) -> HttpResponse:
    """Is all well?"""
    return render(request, "console/overview.html", {})
