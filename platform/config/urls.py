"""Every HTTP address of the Django door. An app that has pages brings `urls.py`; its REST part joins in `api.urls`."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

PAGES = (
    "accounts",
    "registry",
    "layouts",
    "routing",
    "corpora",
    "jobs",
    "deployments",
    "telemetry",
    "gateway",
)

urlpatterns = [
    path("", include("console.urls")),
    *[path("", include(f"{app}.urls")) for app in PAGES],
    path("api/", include("api.page_urls")),
    path("api/v1/", include("api.urls")),
    path("admin/", admin.site.urls),
    path("i18n/", include("accounts.i18n_urls")),
]

handler400 = "common.problems.bad_request"
handler403 = "common.problems.forbidden"
handler404 = "common.problems.not_found"
handler500 = "common.problems.server_error"
