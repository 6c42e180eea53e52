"""How weights are packed in few bits."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from moe_core.sentences import CORE
from moe_core.spec.base import Spec

# What whole factors are on top of: codes of 4 bits around zero times a factor of up to 15 are bytes.
FACTORED_GROUP = 32


class ExpertQuantSpec(Spec):
    """Groups of `group_size` weights along a row share a float16 scale, and a zero point when asymmetric."""

    bits: Literal[4, 8] = 4
    """Bits of one weight."""
    group_size: Literal[32, 64, 128, 256, 512, 768, 1024] = 128
    """How many weights share a scale."""
    symmetric: bool = True
    """Whether codes lie around zero; otherwise each group has a zero point."""
    super_group_size: Literal[256, 512, 768, 1024] | None = None
    """Scales of so many weights are one to fifteen times a common one, and inputs are rounded in such groups too: prompts
    become faster, answers a little less exact. For 4 bits in symmetric groups of 32; null: each scale is its own."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.super_group_size and not self.takes_super_groups:
            sizes = {"group_size": self.group_size, "super_group_size": self.super_group_size}
            raise ValueError(CORE.say("super_groups_of_other_codes", bits=self.bits, **sizes))
        return self

    @property
    def takes_super_groups(self) -> bool:
        """Whether scales may have a common one."""
        return (self.bits, self.group_size, self.symmetric) == (4, FACTORED_GROUP, True)

    @property
    def input_group_size(self) -> int:
        """How many values of an input share a scale where codes are multiplied by codes."""
        return self.super_group_size or self.group_size


WeightsName = Literal["stored", "int8", "int4"]


class Packing(Spec):
    """What of a mixture is packed, and how."""

    experts: ExpertQuantSpec
    """Bits, size of the groups and symmetry of the routed experts."""
    attention: ExpertQuantSpec
    """The same of the maps around attention."""
    head: ExpertQuantSpec
    """The same of the output map."""


_EIGHT, _FOUR = ExpertQuantSpec(bits=8, group_size=64), ExpertQuantSpec(bits=4, group_size=32, super_group_size=256)
# What an engine makes of 16 bits when it loads them; the head in 4 bits would cost more than it saves.
PACKINGS: dict[WeightsName, Packing] = {
    "int8": Packing(experts=_EIGHT, attention=_EIGHT, head=_EIGHT),
    "int4": Packing(experts=_FOUR, attention=_FOUR, head=_EIGHT),
}
