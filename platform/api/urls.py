"""/api/v1: each app lists its REST routes in `rest_urls.py`; this joins them."""

from __future__ import annotations

from importlib.util import find_spec

from django.urls import URLPattern, URLResolver, include, path

from api.views import schema

APPS = (
    "accounts",
    "registry",
    "layouts",
    "routing",
    "corpora",
    "jobs",
    "deployments",
    "telemetry",
    "gateway",
    "console",
)

urlpatterns: list[URLPattern | URLResolver] = [
    path("schema/", schema, name="api-schema"),
    *[path("", include(f"{app}.rest_urls")) for app in APPS if find_spec(f"{app}.rest_urls")],
]
