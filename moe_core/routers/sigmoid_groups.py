"""Each expert scored by itself; the k best of the best groups: the gate of DeepSeek-V2 and V3, GLM-4.5, Kimi-K2.

Shapes: T tokens, E experts, G groups, M experts a group, K top_k.
Source: DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 2.1.2; groups after "DeepSeek-V2", section 2.2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.choosing import best, biased
from moe_core.routers.fused import fused_topk
from moe_core.routers.logits import NEG_INF, SharesOf, linear_logits
from moe_core.routers.routing import Routing
from moe_core.spec.gate import SigmoidGroups

# Keeps 0 / 0 from being NaN where every score has underflowed.
TINY = 1e-20
# More than any two scores and biases differ: an expert outside the chosen groups comes after all inside.
OUTSIDE = 1e4
# Where log(softplus(x)) is x in float32.
DEEP = -20.0


def sigmoid_groups(gate: SigmoidGroups, weights: GateWeights, call: GateCall) -> Routing:
    """Pick by score plus balancing bias inside the best groups; weigh by score, renormalised, times the factor.

    A temperature divides the logits before the score function. Ties go to the lower expert and the lower group.
    Where the prior masks so many experts that the chosen groups hold fewer than k, the best of the others fill up.
    """
    at_once = fused_topk(
        weights,
        call,
        num_groups=gate.num_groups,
        scores=gate.scores,
        normalised=call.norm_topk_prob,
        factor=gate.routed_scaling_factor,
        topk_group=gate.topk_group,
        two_best=gate.group_score == "two_best",
    )
    if at_once is not None:
        return at_once
    logits_TE = linear_logits(weights, call, shares_of(gate))
    scores_TE = expert_scores(gate, logits_TE)
    ids_TK = call.forced_TK
    if ids_TK is None:
        choice_TE = biased(scores_TE, logits_TE, call.selection_bias_E)
        ids_TK = best(inside_best_groups(gate, choice_TE), call.top_k)
    weights_TK = scores_TE.gather(-1, ids_TK)
    if call.norm_topk_prob:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + TINY)
    shares_TE = _shares(scores_TE)
    return Routing(ids_TK, weights_TK * gate.routed_scaling_factor, logits_TE, shares_TE)


def shares_of(gate: SigmoidGroups) -> SharesOf | None:
    """What a floor is solved in; None for a softmax."""
    return None if gate.scores == "softmax" else lambda logits_TE: _shares(expert_scores(gate, logits_TE))


def _shares(scores_TE: Tensor) -> Tensor:
    return scores_TE / (scores_TE.sum(-1, keepdim=True) + TINY)


def expert_scores(gate: SigmoidGroups, logits_TE: Tensor) -> Tensor:
    """(T, E): what the gate makes of logits, without the balancing bias."""
    if gate.scores == "softmax":
        return torch.softmax(logits_TE, dim=-1)
    if gate.scores == "sqrtsoftplus":
        # The root of a softplus that has underflowed has an infinite slope; down there it is an exponential.
        low_TE = logits_TE < DEEP
        middle_TE = torch.nn.functional.softplus(logits_TE.masked_fill(low_TE, DEEP)).sqrt()
        return torch.where(low_TE, (logits_TE.clamp(max=DEEP) / 2).exp(), middle_TE)
    return torch.sigmoid(logits_TE)


def log_expert_scores(gate: SigmoidGroups, logits_TE: Tensor) -> Tensor:
    """(T, E): the logarithm of `expert_scores`, of a softmax up to what all experts have in common; finite for any logit.

    Its gradient is finite too, where the score itself has underflowed and where the logit is -inf.
    """
    if gate.scores == "sigmoid":
        return torch.nn.functional.logsigmoid(logits_TE)
    if gate.scores == "softmax":
        return logits_TE
    # softplus is its exponential so far down, to the last bit.
    low_TE = logits_TE < DEEP
    middle_TE = torch.nn.functional.softplus(logits_TE.masked_fill(low_TE, DEEP)).log()
    return torch.where(low_TE, logits_TE, middle_TE) / 2


def inside_best_groups(gate: SigmoidGroups, choice_TE: Tensor) -> Tensor:
    """The scores that pick, with experts outside the best groups far below the others."""
    if gate.num_groups == 1 or gate.topk_group == gate.num_groups:
        return choice_TE
    groups_TGM = choice_TE.unflatten(-1, (gate.num_groups, -1))
    allowed_TGM = groups_TGM > NEG_INF
    # A masked expert adds nothing to its group and takes nothing from it: the worth is that of the group without it.
    size = min(2 if gate.group_score == "two_best" else 1, groups_TGM.shape[-1])
    best_TGS = groups_TGM.topk(size, dim=-1).values
    worth_TG = best_TGS.masked_fill(best_TGS == NEG_INF, 0.0).sum(-1)
    # A group of masked ones is worth nothing.
    worth_TG = worth_TG.masked_fill(~allowed_TGM.any(-1) & ~worth_TG.isnan(), NEG_INF)
    chosen_TG = best(worth_TG, gate.topk_group)
    outside_TG = torch.ones_like(worth_TG, dtype=torch.bool).scatter(-1, chosen_TG, False)
    return torch.where(outside_TG[..., None], groups_TGM - OUTSIDE, groups_TGM).flatten(-2)
