"""The registry app."""

from __future__ import annotations

from django.apps import AppConfig


class RegistryConfig(AppConfig):
    """Django's handle on this app."""

    name = "registry"

    def ready(self) -> None:
        """Register the loop that sweeps the store."""
        from registry import loops  # noqa: F401
