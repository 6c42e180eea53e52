"""What the layer board says."""

from __future__ import annotations

from django.utils.translation import gettext_noop as _

WORDS: tuple[str, ...] = (
    _("Layer {layer}, with experts"),
    _("Layer {layer}, dense"),
    _("All"),
    _("Every second"),
    _("Upper half"),
    _("None"),
    _("{count} of {total} layers"),
    _("Layers with experts"),
)
