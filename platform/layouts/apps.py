"""The layouts app."""

from __future__ import annotations

from django.apps import AppConfig


class LayoutsConfig(AppConfig):
    """Django's handle on this app."""

    name = "layouts"
