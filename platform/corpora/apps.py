"""The corpora app."""

from __future__ import annotations

from django.apps import AppConfig


class CorporaConfig(AppConfig):
    """Django's handle on this app."""

    name = "corpora"

    def ready(self) -> None:
        """Register the loop that reads waiting files."""
        from corpora import loops  # noqa: F401
