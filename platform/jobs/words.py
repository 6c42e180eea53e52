"""What the script of a job's page says, for `js_words`."""

from __future__ import annotations

from django.utils.translation import gettext_noop as _

WORDS: tuple[str, ...] = (
    _("checkpoint after step {step} of “{stage}”, sha256 {hash}…"),
    _("state: {state}"),
    _("attempt {attempt}"),
)
