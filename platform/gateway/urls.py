"""Pages of the gateway app."""

from __future__ import annotations

from django.urls import URLPattern

app_name = "gateway"
urlpatterns: list[URLPattern] = []
