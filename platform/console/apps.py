"""The console app."""

from __future__ import annotations

from django.apps import AppConfig


class ConsoleConfig(AppConfig):
    """Django's handle on this app."""

    name = "console"
