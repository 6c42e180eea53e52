"""Pages of the gateway app, and health."""

from __future__ import annotations

from django.urls import path

from gateway import views

app_name = "gateway"
urlpatterns = [
    path("healthz", views.healthz, name="healthz"),
    path("readyz", views.readyz, name="readyz"),
    path("gateway/", views.keys, name="keys"),
]
