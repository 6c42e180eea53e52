"""Pages of the telemetry app."""

from __future__ import annotations

from django.urls import URLPattern

app_name = "telemetry"
urlpatterns: list[URLPattern] = []
