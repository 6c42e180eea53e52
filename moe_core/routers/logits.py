"""From hidden states to logits, in float32: the map, its bias, the temperature, the domain prior.

T tokens, D model width, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.routers.call import Floor, GateCall, GateWeights

NEG_INF = float("-inf")


def linear_logits(weights: GateWeights, call: GateCall) -> Tensor:
    """(T, E) float32 logits of a linear gate, after temperature and prior."""
    return adjusted(raw_logits(weights, call), call)


def raw_logits(weights: GateWeights, call: GateCall) -> Tensor:
    """(T, E) float32: what the map of a linear gate says."""
    weight_ED = weights["weight"]
    check_shapes(call.hidden_TD, weight_ED, call.top_k)
    bias_E = weights.get("bias")
    return torch.nn.functional.linear(
        call.hidden_TD.float(), weight_ED.float(), None if bias_E is None else bias_E.float()
    )


def adjusted(raw_TE: Tensor, call: GateCall) -> Tensor:
    """Raw logits divided by the temperature, then moved by the domain prior: bias or mask first, then the floor."""
    logits_TE = raw_TE if call.temperature in (0.0, 1.0) else raw_TE / call.temperature
    if call.bias_TE is not None:
        logits_TE = logits_TE + call.bias_TE
    return logits_TE if call.floor is None else with_floor(logits_TE, call.floor)


def with_floor(logits_TE: Tensor, floor: Floor) -> Tensor:
    """Raise the logits of a token's own experts, all by the same amount, until they have the floor's share together.

    Tokens that have it already, and those whose domain has all experts or none, stay bit for bit as they are.
    """
    mine_TE = floor.mine_TE
    log_odds_T = (
        logits_TE.masked_fill(~mine_TE, NEG_INF).logsumexp(-1)
        - logits_TE.masked_fill(mine_TE, NEG_INF).logsumexp(-1)
    )  # fmt: skip
    missing_T = torch.logit(floor.share_T) - log_odds_T
    # Infinite where one side has no expert: nothing can be moved there.
    missing_T = torch.where(missing_T.isfinite() & (missing_T > 0.0), missing_T, 0.0)
    return logits_TE + missing_T[:, None] * mine_TE


def check_shapes(hidden_TD: Tensor, weight_ED: Tensor, top_k: int) -> None:
    """Raise SpecError when the map does not fit the hidden states, or has fewer than top_k experts."""
    if hidden_TD.ndim != 2 or weight_ED.ndim != 2 or hidden_TD.shape[1] != weight_ED.shape[1]:
        raise SpecError(
            f"hidden {tuple(hidden_TD.shape)} and router weight {tuple(weight_ED.shape)} must be (T, D) and (E, D)"
        )
    if not 1 <= top_k <= weight_ED.shape[0]:
        raise SpecError(f"top_k ({top_k}) must be between 1 and the number of experts ({weight_ED.shape[0]})")
