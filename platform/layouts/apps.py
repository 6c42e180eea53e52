"""The layouts app."""

from __future__ import annotations

from django.apps import AppConfig


class LayoutsConfig(AppConfig):
    """Django's handle on this app."""

    name = "layouts"

    def ready(self) -> None:
        """Import what registers itself."""
        from layouts import selectors  # noqa: F401
