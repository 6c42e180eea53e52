"""Operations on experts: each takes a loaded model and a specification, and returns a model and a report.

The model that is given is left as it was; a report is plain data for JSON.
"""

from __future__ import annotations

from moe_core.operations.compose import compose
from moe_core.operations.distil import distil
from moe_core.operations.edit import merge_experts, preview_removal, remove_expert
from moe_core.operations.grow import add_expert, grow, release_twins
from moe_core.operations.measure import measure_model
from moe_core.operations.prompts import Prompts
from moe_core.operations.quantise import dequantise, quantise
from moe_core.operations.specialise import specialise_clone
from moe_core.operations.upcycle import upcycle
from moe_core.operations.wake import wake_expert

__all__ = [
    "Prompts",
    "add_expert",
    "compose",
    "dequantise",
    "distil",
    "grow",
    "measure_model",
    "merge_experts",
    "preview_removal",
    "quantise",
    "release_twins",
    "remove_expert",
    "specialise_clone",
    "upcycle",
    "wake_expert",
]
