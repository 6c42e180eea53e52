"""Families: how each one names its tensors and spells its configuration."""

from __future__ import annotations

from moe_core.model.families.config import config_of, spec_of
from moe_core.model.families.names import slots_of
from moe_core.model.families.slots import Slot

__all__ = ["Slot", "config_of", "slots_of", "spec_of"]
