"""Bounds on the gating of feed-forwards, one a layer.

Source: StepFun 2026, "Step 3.5 Flash", arXiv 2602.10604.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

# On silu(gate) from above and on up from both sides; 0 for none.
Clamp = Annotated[float, Field(ge=0.0, le=1e4)]
Clamps = Annotated[tuple[Clamp, ...], Field(max_length=512)]


def clamps_complaint(name: str, clamps: Clamps, num_layers: int, activation: str) -> str | None:
    """Why a model cannot have these bounds; None when it can. No bounds at all are ()."""
    if not clamps:
        return None
    if len(clamps) != num_layers:
        return f"{name} has {len(clamps)} values; give one for each of the {num_layers} layers"
    if not any(clamps):
        return f"{name} is 0 in every layer; give an empty list"
    if activation != "silu":
        return f"{name} belongs to activation 'silu', not {activation!r}"
    return None
