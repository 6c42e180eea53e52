"""Routers: hidden states in, expert ids and weights out."""

from __future__ import annotations

from moe_core.routers.routing import Routing
from moe_core.routers.softmax_topk import route

__all__ = ["Routing", "route"]
