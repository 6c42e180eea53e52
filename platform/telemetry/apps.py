"""The telemetry app."""

from __future__ import annotations

from django.apps import AppConfig


class TelemetryConfig(AppConfig):
    """Django's handle on this app."""

    name = "telemetry"

    def ready(self) -> None:
        """Import what registers itself."""
        from telemetry import ingest, retention  # noqa: F401
