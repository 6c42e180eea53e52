"""Specifications: what a model, a layout, a routing policy, a run and an engine are.

Nothing here imports torch or numpy, so that a web process may. Each name is read when it is first used: a schema takes some
10 ms, and an engine's start needs a third of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULE_OF = {
    "CapacitySpec": "capacity",
    "Cost": "cost",
    "DomainSpec": "routing",
    "GateSpec": "gate",
    "LayoutSpec": "layout",
    "ModelSpec": "model",
    "MoeSpec": "model",
    "RoutingSpec": "routing",
    "ServeSpec": "serve",
    "TemperatureSpec": "temperature",
    "TuneSpec": "train",
    "cost_of": "cost",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
