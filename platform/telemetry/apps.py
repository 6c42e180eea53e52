"""The telemetry app."""

from __future__ import annotations

from django.apps import AppConfig


class TelemetryConfig(AppConfig):
    """Django's handle on this app."""

    name = "telemetry"
