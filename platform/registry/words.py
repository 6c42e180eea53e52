"""What the upload module says."""

from __future__ import annotations

from django.utils.translation import gettext_noop as _

WORDS: tuple[str, ...] = (
    _("{sent} of {size}, {percent}"),
    _("All bytes are there; checking them"),
    _("The upload was cut off. Send the file again."),
)
