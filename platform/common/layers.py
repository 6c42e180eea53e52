"""Layers as people write them: 0-2, 5."""

from __future__ import annotations

import re
from collections.abc import Iterable

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

MAX_LAYERS = 512
RANGE = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?")


def layers_text(layers: Iterable[int]) -> str:
    """0,1,2,5 reads 0-2, 5."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and runs[-1][-1] == layer - 1:
            runs[-1][1:] = [layer]
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def parse_layers(text: str) -> list[int]:
    """Read "0-2, 5, 7"; raise ValidationError naming the part that cannot be read."""
    layers: set[int] = set()
    for part in re.split(r"[,，、;\s]+", re.sub(r"\s*[-–]\s*", "-", text.strip())):
        if not part:
            continue
        found = RANGE.fullmatch(part)
        first = int(found[1]) if found else -1
        last = int(found[2]) if found and found[2] else first
        if not found or first > last or last >= MAX_LAYERS:
            raise ValidationError(
                _("“%(part)s” is no layer and no range of layers, such as 4 or 8-15.") % {"part": part[:40]}
            )
        layers.update(range(first, last + 1))
    if not layers:
        raise ValidationError(_("Choose at least one layer."))
    return sorted(layers)
