"""The hooks app."""

from __future__ import annotations

from django.apps import AppConfig


class HooksConfig(AppConfig):
    """Django's handle on this app."""

    name = "hooks"
