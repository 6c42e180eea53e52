"""Experts: packed weights that run together."""

from __future__ import annotations

from moe_core.experts.grouped import GroupedExperts
from moe_core.experts.mixed import MixedExperts
from moe_core.experts.packed import PackedExperts
from moe_core.experts.packed_mlps import PackedMlps

__all__ = ["GroupedExperts", "MixedExperts", "PackedExperts", "PackedMlps"]
