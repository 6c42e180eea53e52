"""The accounts app."""

from __future__ import annotations

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """Django's handle on this app."""

    name = "accounts"

    def ready(self) -> None:
        """Import what registers itself."""
        from accounts import throttle  # noqa: F401
