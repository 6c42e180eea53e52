"""Experts: packed weights that run together."""

from __future__ import annotations

from moe_core.experts.grouped import GroupedExperts

__all__ = ["GroupedExperts"]
