"""Specifications: what a model, a layout, a routing policy, a run and an engine are.

Nothing here imports torch or numpy, so that a web process may.
"""

from __future__ import annotations

from moe_core.spec.capacity import CapacitySpec
from moe_core.spec.cost import Cost, cost_of
from moe_core.spec.gate import GateSpec
from moe_core.spec.layout import LayoutSpec
from moe_core.spec.model import ModelSpec, MoeSpec
from moe_core.spec.routing import DomainSpec, RoutingSpec
from moe_core.spec.serve import ServeSpec
from moe_core.spec.temperature import TemperatureSpec
from moe_core.spec.train import TuneSpec

__all__ = [
    "CapacitySpec",
    "Cost",
    "DomainSpec",
    "GateSpec",
    "LayoutSpec",
    "ModelSpec",
    "MoeSpec",
    "RoutingSpec",
    "ServeSpec",
    "TemperatureSpec",
    "TuneSpec",
    "cost_of",
]
