"""Layers as people write them: 0-2, 5."""

from __future__ import annotations

from collections.abc import Iterable

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

from common.ranges import UnreadableRange, parse_ranges, ranges_text

MAX_LAYERS = 512


def layers_text(layers: Iterable[int]) -> str:
    """0,1,2,5 reads 0-2, 5."""
    return ranges_text(layers)


def parse_layers(text: str) -> list[int]:
    """Read "0-2, 5, 7"; raise ValidationError naming the part that cannot be read."""
    try:
        layers = parse_ranges(text, limit=MAX_LAYERS)
    except UnreadableRange as error:
        words = {"part": error.part}
        raise ValidationError(
            _("“%(part)s” is no layer and no range of layers, such as 4 or 8-15.") % words
        ) from error
    if not layers:
        raise ValidationError(_("Choose at least one layer."))
    return layers
