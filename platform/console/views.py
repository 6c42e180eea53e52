"""Pages that put the apps together."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


def overview(request: HttpRequest) -> HttpResponse:
    """Is all well?"""
    return render(request, "console/overview.html", {})
