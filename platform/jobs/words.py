"""What the script of a job's page says, for `js_words`."""

from __future__ import annotations

from django.utils.translation import gettext_noop as _

from jobs.execution import GIVEN_BACK
from jobs.reconcile import LOST

# Not written in the JavaScript: they come with the events and are looked up as they are.
FROM_EVENTS = (
    _("queued"),
    _("running"),
    _("pausing"),
    _("paused"),
    _("cancelling"),
    _("cancelled"),
    _("succeeded"),
    _("failed"),
    _("quarantined"),
    GIVEN_BACK,
    LOST,
)
WORDS: tuple[str, ...] = (
    _("checkpoint after step {step} of “{stage}”, sha256 {hash}…"),
    _("state: {state}"),
    _("{stage}: windows prepared {step} / {of}"),
    _("attempt {attempt}"),
    *FROM_EVENTS,
)
