"""The corpora app."""

from __future__ import annotations

from django.apps import AppConfig


class CorporaConfig(AppConfig):
    """Django's handle on this app."""

    name = "corpora"

    def ready(self) -> None:
        """Import what registers itself."""
        from corpora import loops, selectors  # noqa: F401
