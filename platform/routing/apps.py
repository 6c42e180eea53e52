"""The routing app."""

from __future__ import annotations

from django.apps import AppConfig


class RoutingConfig(AppConfig):
    """Django's handle on this app."""

    name = "routing"

    def ready(self) -> None:
        """Import what registers itself."""
        from routing import selectors  # noqa: F401
