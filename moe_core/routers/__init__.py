"""Routers: hidden states in, expert ids and weights out."""

from __future__ import annotations

from moe_core.routers.call import Floor, GateCall, GateWeights
from moe_core.routers.gates import decide
from moe_core.routers.routing import NO_EXPERT, Overflow, Routing, SlotMix, load_of
from moe_core.routers.softmax_topk import route

__all__ = [
    "NO_EXPERT",
    "Floor",
    "GateCall",
    "GateWeights",
    "Overflow",
    "Routing",
    "SlotMix",
    "decide",
    "load_of",
    "route",
]
