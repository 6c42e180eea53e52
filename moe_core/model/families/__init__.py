"""Families: how each one names its tensors and spells its configuration."""

from __future__ import annotations

from moe_core.model.families.config import config_of, family_for, spec_of
from moe_core.model.families.expert_names import moe_slots_in, router_and_shared_slots
from moe_core.model.families.names import slots_of, trunk_slots
from moe_core.model.families.registry import FAMILIES
from moe_core.model.families.slots import Slot

__all__ = [
    "FAMILIES",
    "Slot",
    "config_of",
    "family_for",
    "moe_slots_in",
    "router_and_shared_slots",
    "slots_of",
    "spec_of",
    "trunk_slots",
]
