"""Pages of the corpora app."""

from __future__ import annotations

from django.urls import URLPattern

app_name = "corpora"
urlpatterns: list[URLPattern] = []
