"""How many tokens an expert may take, and what becomes of those beyond."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from moe_core.spec.base import Spec

OverflowPolicy = Literal["drop", "residual", "next_best", "learned"]
CapacityFactor = Annotated[float, Field(gt=0.0, le=1e3)]


class CapacitySpec(Spec):
    """The capacity of an expert as a multiple of its fair share of T · K / E; None means no limit.

    What a token loses when an expert is full: "drop" nothing comes back for it; "residual" the token's own hidden state,
    with the weight that the expert would have had; "next_best" its best expert that has room takes over; "learned" the
    same after a small learnt correction of the scores.
    """

    train_factor: CapacityFactor | None = 1.25
    """How many times its fair share an expert takes while training; null for no limit."""
    eval_factor: CapacityFactor | None = None
    """The same when serving."""
    overflow: OverflowPolicy = "drop"
    """What becomes of a token whose expert is full."""
    priority: Literal["position", "weight"] = "position"
    """Who goes first where there is no room for all: earlier tokens, or those with the higher weight (V-MoE).
    """
    min_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    """What an expert takes in any case."""

    def tokens_an_expert(
        self, num_tokens: int, num_experts: int, top_k: int, *, training: bool
    ) -> int | None:
        """The most tokens of one expert: ⌈factor · T · K / E⌉, never more than T; None without a limit."""
        factor = self.train_factor if training else self.eval_factor
        if factor is None:
            return None
        # Rounded first: 1.1 · 100 is 110.00000000000001, which is not a reason for a place more.
        wanted = math.ceil(round(factor * num_tokens * top_k / num_experts, 9))
        return min(num_tokens, max(self.min_tokens, wanted))
