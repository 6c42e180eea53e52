"""Every operation by its kind, for tests that go through all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moe_core import operations
from moe_core.model import Decoder
from moe_core.operations.prompts import Prompts

# Model, specification and prompts → the model that is made and the report; `compose` takes the model twice.
ACTS: dict[str, Callable[[Decoder, Any, Prompts], tuple[Decoder, dict[str, Any]]]] = {
    "upcycle": lambda model, operation, prompts: operations.upcycle(model, operation),
    "grow": lambda model, operation, prompts: operations.grow(model, operation),
    "add": lambda model, operation, prompts: operations.add_expert(model, operation),
    "remove": operations.remove_expert,
    "merge": operations.merge_experts,
    "release_twins": lambda model, operation, prompts: operations.release_twins(model, operation),
    "quantise": lambda model, operation, prompts: operations.quantise(model, operation),
    "dequantise": lambda model, operation, prompts: operations.dequantise(model, operation),
    "specialise_clone": operations.specialise_clone,
    "wake_expert": operations.wake_expert,
    "distil": operations.distil,
    "compose": lambda model, operation, prompts: operations.compose([model, model], operation, prompts),
}
