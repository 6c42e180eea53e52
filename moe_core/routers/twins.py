"""Hides from each token all but one of every set of twins.

Copies of an expert that share its gate row would take each other's places among the k best. Where every token sees one
of them, the choice, the weights and so the output are those of the one expert; which one is seen spreads the tokens,
so that twins can grow apart.

Shapes: T tokens, D model width, E experts, R roots (sets of twins).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moe_core.routers.call import Floor, GateCall, GateWeights
from moe_core.routers.choosing import biased
from moe_core.routers.hierarchical import joint_logits, level_logits
from moe_core.routers.logits import NEG_INF, SharesOf, adjusted, raw_logits, shift_for
from moe_core.routers.sigmoid_groups import expert_scores, shares_of
from moe_core.routers.sparsemax import sparsemax
from moe_core.spec.gate import Base, Gate, Hierarchical, SigmoidGroups, Sparsemax
from moe_core.spec.twins import TwinsSpec

# Sign bits of so many coordinates make a token's hash.
HASH_BITS = 16
GOLDEN = 0x9E3779B1


@torch.no_grad()
def with_one_of_twins(twins: TwinsSpec, gate: Gate, weights: GateWeights, call: GateCall) -> GateCall:
    """The call with -inf in its prior for every twin that a token does not see.

    What is seen is the twin that the hash names, or with a hold the one that the gate scores highest. A twin that the
    prior masks gives way to one that it does not. Where the prior pushes a hidden twin up or holds a floor under it, the
    seen one stands in for it.
    """
    root_E = torch.tensor(twins.roots, device=call.hidden_TD.device)
    picked_TE = _picked_by_hash(call.hidden_TD, root_E)
    if twins.hold is None or "weight" not in weights:
        score_TE = picked_TE.float()
    else:
        logits_TE = _held_logits(twins.hold, gate, weights, call, picked_TE, root_E)
        score_TE = _choosing_scores(gate, logits_TE, call, picked_TE, root_E)
    given_TE = torch.zeros_like(score_TE) if call.bias_TE is None else call.bias_TE.float()
    score_TE = score_TE.masked_fill(given_TE == NEG_INF, NEG_INF)
    seen_TE = _best_of_twins(score_TE, picked_TE, root_E)
    if call.bias_TE is not None:
        given_TE = torch.where(given_TE == 0.0, _highest_of_twins(given_TE.clamp(min=0.0), root_E), given_TE)
    floor = call.floor
    if floor is not None:
        # What is hidden has no share to give.
        floor = Floor(floor.share_T, seen_TE & _any_of_twins(floor.mine_TE, root_E))
    return replace(call, bias_TE=given_TE.masked_fill(~seen_TE, NEG_INF), floor=floor)


def _held_logits(
    hold: float, gate: Gate, weights: GateWeights, call: GateCall, picked_TE: Tensor, root_E: Tensor
) -> Tensor:
    """(T, E): the logits with the hold on the hash's twin; a floor asks for what it would of the twins that are seen.

    These are the domain's own wherever it has one among twins: how far a floor lifts them does not hang on twins that
    would be hidden then.
    """
    by_levels = isinstance(gate, Hierarchical)
    raw_TE = joint_logits(*level_logits(weights, call)) if by_levels else raw_logits(weights, call)
    unfloored = replace(call, floor=None)
    held_TE = adjusted(raw_TE + hold * picked_TE, unfloored)
    if call.floor is None:
        return held_TE
    logits_TE = adjusted(raw_TE, unfloored)
    own_TE = call.floor.mine_TE & (logits_TE != NEG_INF)
    others_TE = ~own_TE & _any_of_twins(own_TE, root_E)
    seen_TE = _best_of_twins(logits_TE.masked_fill(others_TE, NEG_INF), picked_TE, root_E)
    return held_TE + shift_for(logits_TE.masked_fill(~seen_TE, NEG_INF), call.floor, _shares_of(gate))


def _shares_of(gate: Gate) -> SharesOf | None:
    if isinstance(gate, SigmoidGroups):
        return shares_of(gate)
    return sparsemax if isinstance(gate, Sparsemax) else None


def _choosing_scores(
    gate: Gate, logits_TE: Tensor, call: GateCall, picked_TE: Tensor, root_E: Tensor
) -> Tensor:
    """(T, E): what the gate would choose by if a twin were the one that is seen.

    A softmax is taken of the best twin of each root, so that its shares are of the size that the gate will see.
    """
    if isinstance(gate, SigmoidGroups) and gate.scores != "softmax":
        scores_TE = expert_scores(gate, logits_TE)
    elif call.selection_bias_E is None or isinstance(gate, (Sparsemax, Base)):
        scores_TE = logits_TE
    elif call.temperature == 0.0:
        scores_TE = (logits_TE == logits_TE.amax(-1, keepdim=True)).float()
    else:
        hidden_TE = ~_best_of_twins(logits_TE, picked_TE, root_E)
        scores_TE = (logits_TE - logits_TE.masked_fill(hidden_TE, NEG_INF).logsumexp(-1, keepdim=True)).exp()
    return biased(scores_TE, logits_TE, call.selection_bias_E)


def hash_of(hidden_TD: Tensor) -> Tensor:
    """(T,) int64: the signs of a few coordinates as one number. It hangs on the token alone, not on its batch."""
    num_bits = min(HASH_BITS, hidden_TD.shape[1])
    at = torch.arange(num_bits, device=hidden_TD.device) * (hidden_TD.shape[1] // num_bits)
    return ((hidden_TD[:, at] > 0).long() << torch.arange(num_bits, device=hidden_TD.device)).sum(-1)


def _picked_by_hash(hidden_TD: Tensor, root_E: Tensor) -> Tensor:
    """(T, E) bool: the one twin of each root that the token's hash names; another one for another root."""
    place_E = _place_among_twins(root_E)
    size_E = torch.bincount(root_E, minlength=root_E.shape[0])[root_E]
    mixed_TE = ((hash_of(hidden_TD)[:, None] + 1) * GOLDEN + (root_E + 1) * 0x85EBCA6B) & 0xFFFFFFFF
    mixed_TE = ((mixed_TE ^ (mixed_TE >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    return (mixed_TE >> 12) % size_E == place_E


def _place_among_twins(root_E: Tensor) -> Tensor:
    same_EE = root_E[:, None] == root_E[None, :]
    return same_EE.tril(-1).sum(-1)


def _best_of_twins(score_TE: Tensor, picked_TE: Tensor, root_E: Tensor) -> Tensor:
    """(T, E) bool: the twin with the highest score; of equal ones the hash's, else the lowest number."""
    num_experts = root_E.shape[0]
    index_TE, best_TE = root_E.expand_as(score_TE), _highest_of_twins(score_TE, root_E)
    number_TE = torch.arange(num_experts, device=root_E.device).expand_as(score_TE)
    rank_TE = (number_TE - num_experts * picked_TE.long()).masked_fill(score_TE != best_TE, num_experts)
    first_TE = torch.full_like(rank_TE, num_experts).scatter_reduce(1, index_TE, rank_TE, "amin")
    return rank_TE == first_TE.gather(1, index_TE)


def _highest_of_twins(values_TE: Tensor, root_E: Tensor) -> Tensor:
    """(T, E): the highest value of the set of twins that the expert belongs to."""
    index_TE = root_E.expand_as(values_TE)
    return (
        torch.full_like(values_TE, NEG_INF).scatter_reduce(1, index_TE, values_TE, "amax").gather(1, index_TE)
    )


def _any_of_twins(flags_TE: Tensor, root_E: Tensor) -> Tensor:
    """(T, E) bool: whether one of the set of twins that the expert belongs to is flagged."""
    return _highest_of_twins(flags_TE.float(), root_E) > 0.0
