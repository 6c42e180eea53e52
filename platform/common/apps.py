"""The common app: what every room stands on."""

from __future__ import annotations

from django.apps import AppConfig


class CommonConfig(AppConfig):
    """Registers the outbox relay as a loop."""

    name = "common"

    def ready(self) -> None:
        """Import what registers itself."""
        from common import outbox  # noqa: F401
