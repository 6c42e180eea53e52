"""The gateway app."""

from __future__ import annotations

from django.apps import AppConfig


class GatewayConfig(AppConfig):
    """Django's handle on this app."""

    name = "gateway"

    def ready(self) -> None:
        """Import what registers itself."""
        from gateway import quota  # noqa: F401
