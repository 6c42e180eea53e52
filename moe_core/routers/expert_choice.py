"""Experts pick tokens instead of tokens picking experts: loads are even by construction.

Not for serving token after token: whether a token is picked hangs on the others of its batch, later ones included.
Shapes: T tokens, E experts, C tokens of an expert.
Source: Zhou et al. 2022, "Mixture-of-Experts with Expert Choice Routing", arXiv 2202.09368.
"""

from __future__ import annotations

import torch

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.choosing import best, biased, emptied
from moe_core.routers.logits import NEG_INF, linear_logits
from moe_core.routers.routing import Routing
from moe_core.routers.softmax_topk import softmax_choice
from moe_core.spec.capacity import CapacitySpec
from moe_core.spec.gate import ExpertChoice


def expert_choice(gate: ExpertChoice, weights: GateWeights, call: GateCall) -> Routing:
    """Each expert's C best tokens by the softmax over experts; a token has as many experts as have picked it.

    Ids are (T, E), best first, with empty places after them. Ties go to the earlier token. An expert that the prior masks
    for a token never picks it; padding and tokens that are NaN are never picked. Forced ids replace the choice.
    """
    logits_TE = linear_logits(weights, call)
    num_tokens, num_experts = logits_TE.shape
    if call.forced_TK is not None:
        return softmax_choice(logits_TE, call, renormalised=call.norm_topk_prob)
    probs_TE = torch.softmax(logits_TE, dim=-1)
    scores_TE = biased(probs_TE, logits_TE, call.selection_bias_E)
    # A NaN would come before all others and take their places.
    scores_TE = scores_TE.masked_fill(scores_TE.isnan(), NEG_INF)
    if call.real_T is not None:
        scores_TE = scores_TE.masked_fill(~call.real_T[:, None], NEG_INF)
        num_tokens = int(call.real_T.sum())
    share = CapacitySpec(train_factor=gate.capacity_factor)
    count = share.tokens_an_expert(num_tokens, num_experts, call.top_k, training=True)
    order_TE = torch.sort(scores_TE, dim=0, descending=True, stable=True).indices
    picked_TE = torch.zeros_like(scores_TE, dtype=torch.bool).scatter(0, order_TE[:count], True)
    picked_TE &= scores_TE > NEG_INF
    best_first_TE = best(torch.where(picked_TE, probs_TE, -1.0), num_experts)
    ids_TE, weights_TE = emptied(
        best_first_TE, probs_TE.gather(-1, best_first_TE), picked_TE.gather(-1, best_first_TE)
    )
    return Routing(ids_TE, weights_TE, logits_TE, probs_TE)
