"""From hidden states to logits, in float32: the map, its bias, the temperature, the domain prior.

T tokens, D model width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moe_core.routers.call import Floor, GateCall, GateWeights
from moe_core.routers.checks import check_shapes

NEG_INF = float("-inf")
# From logits (T, E) to what a gate has for shares.
SharesOf = Callable[[Tensor], Tensor]
# A shift so far beyond the largest logit leaves any score function nothing on the other side.
LARGEST_SHIFT = 100.0
HALVINGS = 32


def linear_logits(weights: GateWeights, call: GateCall, shares_of: SharesOf | None = None) -> Tensor:
    """(T, E) float32 logits of a linear gate, after temperature and prior; a floor is one of `shares_of`."""
    return adjusted(raw_logits(weights, call), call, shares_of)


def raw_logits(weights: GateWeights, call: GateCall) -> Tensor:
    """(T, E) float32: what the map of a linear gate says."""
    weight_ED = weights["weight"]
    check_shapes(call.hidden_TD, weight_ED, call.top_k)
    bias_E = weights.get("bias")
    return torch.nn.functional.linear(
        call.hidden_TD.float(), weight_ED.float(), None if bias_E is None else bias_E.float()
    )


def adjusted(raw_TE: Tensor, call: GateCall, shares_of: SharesOf | None = None) -> Tensor:
    """Raw logits divided by the temperature, then moved by bias or mask and noise, at last by a floor."""
    logits_TE = raw_TE if call.temperature in (0.0, 1.0) else raw_TE / call.temperature
    if call.bias_TE is not None:
        logits_TE = logits_TE + call.bias_TE
    if call.noise_TE is not None:
        logits_TE = logits_TE + call.noise_TE
    return logits_TE if call.floor is None else logits_TE + shift_for(logits_TE, call.floor, shares_of)


def shift_for(logits_TE: Tensor, floor: Floor, shares_of: SharesOf | None) -> Tensor:
    """(T, E): what is added to logits for a floor, one of the softmax or of `shares_of`."""
    if shares_of is None:
        return floor_shift(logits_TE, floor)
    return searched_shift(logits_TE, floor, shares_of)


@torch.no_grad()
def searched_shift(logits_TE: Tensor, floor: Floor, shares_of: SharesOf) -> Tensor:
    """(T, E): as much up for a token's own experts as down for the others, so that the former have the floor's share.

    For gates whose shares are no softmax: found by halving, and a constant to gradients. The same tokens as in
    `floor_shift` stay as they are.
    """
    mine_TE, finite_TE = floor.mine_TE, logits_TE.isfinite()
    signs_TE = mine_TE.float() - (~mine_TE).float()

    def lacks(shift_T: Tensor) -> Tensor:
        shares_TE = shares_of(logits_TE + shift_T[:, None] * signs_TE)
        return shares_TE.masked_fill(~mine_TE, 0.0).sum(-1) < floor.share_T

    low_T = logits_TE.new_zeros(logits_TE.shape[0])
    moved_T = _two_sided(logits_TE, floor) & lacks(low_T)
    high_T = LARGEST_SHIFT + logits_TE.masked_fill(~finite_TE, 0.0).abs().amax(-1)
    for _ in range(HALVINGS):
        middle_T = (low_T + high_T) / 2
        lacks_T = lacks(middle_T)
        low_T, high_T = torch.where(lacks_T, middle_T, low_T), torch.where(lacks_T, high_T, middle_T)
    return torch.where(moved_T, high_T, 0.0)[:, None] * signs_TE


def floor_shift(logits_TE: Tensor, floor: Floor) -> Tensor:
    """(T, E): what raises a token's own experts, all by the same amount, to the floor's share of the softmax together.

    Tokens that have it already, and those whose domain has all experts or none, stay bit for bit as they are.
    """
    mine_TE, movable_T = floor.mine_TE, _two_sided(logits_TE, floor)
    # Taken out before the logsumexp: one of nothing but -inf has a gradient of NaN behind any mask.
    own_TE = logits_TE.masked_fill(movable_T[:, None] & ~mine_TE, NEG_INF)
    other_TE = logits_TE.masked_fill(movable_T[:, None] & mine_TE, NEG_INF)
    missing_T = torch.logit(floor.share_T) - (own_TE.logsumexp(-1) - other_TE.logsumexp(-1))
    missing_T = torch.where(movable_T & (missing_T > 0.0), missing_T, 0.0)
    return missing_T[:, None] * mine_TE


def _two_sided(logits_TE: Tensor, floor: Floor) -> Tensor:
    """(T,) bool: tokens that a floor can move, with experts of their own and others; none that is NaN."""
    finite_TE = logits_TE.detach().isfinite()
    return (floor.mine_TE & finite_TE).any(-1) & (~floor.mine_TE & finite_TE).any(-1)
