"""The console app."""

from __future__ import annotations

import logging

from django.apps import AppConfig

log = logging.getLogger(__name__)


class ConsoleConfig(AppConfig):
    """Django's handle on this app."""

    name = "console"

    def ready(self) -> None:
        """See to it that the words are compiled before the first page asks for one."""
        from console.translations import compile_stale

        try:
            compile_stale()
        except OSError as error:  # an installed copy may be read-only; it brings its compiled words
            log.warning("translations were not compiled: %s", error)
