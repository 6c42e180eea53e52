"""How weights are packed in few bits."""

from __future__ import annotations

from typing import Literal

from moe_core.spec.base import Spec


class ExpertQuantSpec(Spec):
    """Groups of `group_size` weights along a row share a float16 scale, and a zero point when asymmetric."""

    bits: Literal[4, 8] = 4
    """Bits of one weight."""
    group_size: Literal[32, 64, 128, 256, 512, 768, 1024] = 128
    """How many weights share a scale."""
    symmetric: bool = True
    """Whether codes lie around zero; otherwise each group has a zero point."""


WeightsName = Literal["stored", "int8", "int4"]


class Packing(Spec):
    """What of a mixture is packed, and how."""

    experts: ExpertQuantSpec
    """Bits, size of the groups and symmetry of the routed experts."""
    attention: ExpertQuantSpec
    """The same of the maps around attention."""
    head: ExpertQuantSpec
    """The same of the output map."""


_EIGHT, _FOUR = ExpertQuantSpec(bits=8, group_size=64), ExpertQuantSpec(bits=4, group_size=32)
# What an engine makes of 16 bits when it loads them; the head in 4 bits would cost more than it saves.
PACKINGS: dict[WeightsName, Packing] = {
    "int8": Packing(experts=_EIGHT, attention=_EIGHT, head=_EIGHT),
    "int4": Packing(experts=_FOUR, attention=_FOUR, head=_EIGHT),
}
