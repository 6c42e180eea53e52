"""The deployments app."""

from __future__ import annotations

from django.apps import AppConfig


class DeploymentsConfig(AppConfig):
    """Django's handle on this app."""

    name = "deployments"

    def ready(self) -> None:
        """Import what registers itself."""
        from deployments import reconcile, uses  # noqa: F401
