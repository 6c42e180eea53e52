"""The jobs app."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class JobsConfig(AppConfig):
    """Registers the doorbell and the loop that finds lost work."""

    name = "jobs"
    verbose_name = _("Jobs")

    def ready(self) -> None:
        """Import what registers itself."""
        from jobs import dispatch, reconcile, uses  # noqa: F401
