"""How weights are packed in few bits."""

from __future__ import annotations

from typing import Literal

from moe_core.spec.base import Spec


class ExpertQuantSpec(Spec):
    """Groups of `group_size` weights along a row share a float16 scale, and a zero point when asymmetric."""

    bits: Literal[4, 8] = 4
    """Bits of one weight."""
    group_size: Literal[32, 64, 128] = 128
    """How many weights share a scale."""
    symmetric: bool = True
    """Whether codes lie around zero; otherwise each group has a zero point."""
