"""Even loads while training by Sinkhorn's iterations on the scores that pick.

Shapes: T tokens, E experts, K top_k.
Source: Sinkhorn 1964; Clark et al. 2022, "Unified Scaling Laws for Routed Language Models", arXiv 2202.01169 (S-BASE).
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.choosing import best, biased
from moe_core.routers.logits import linear_logits
from moe_core.routers.routing import Routing
from moe_core.routers.softmax_topk import softmax_choice
from moe_core.spec.gate import Sinkhorn


def sinkhorn_gate(gate: Sinkhorn, weights: GateWeights, call: GateCall) -> Routing:
    """While training the k best of the evened scores, weighed by the gate's own softmax; plain top-k when serving."""
    logits_TE = linear_logits(weights, call)
    plain = softmax_choice(logits_TE, call, renormalised=call.norm_topk_prob)
    if not call.training or call.forced_TK is not None or not logits_TE.shape[0]:
        return plain
    # Padding takes no share of an expert, and a NaN would spread over its column.
    real_T = ~logits_TE.isnan().any(-1)
    real_T = real_T if call.real_T is None else real_T & call.real_T
    scores_TE = logits_TE.detach().clone()
    scores_TE[real_T] = sinkhorn(scores_TE[real_T], gate.num_iterations).log()
    ids_TK = best(biased(scores_TE, logits_TE, call.selection_bias_E), call.top_k)
    chosen_TK = logits_TE.gather(-1, ids_TK)
    weights_TK = torch.softmax(chosen_TK, -1) if call.norm_topk_prob else plain.probs_TE.gather(-1, ids_TK)
    return Routing(ids_TK, weights_TK, logits_TE, plain.probs_TE)


def sinkhorn(logits_TE: Tensor, num_iterations: int) -> Tensor:
    """exp(logits) with rows and columns scaled in turn: rows sum to 1, columns (nearly) to T / E; in logarithms.

    The last scaling is that of the rows.
    """
    num_tokens, num_experts = logits_TE.shape
    z_TE = logits_TE.double()
    log_share = torch.log(torch.tensor(max(num_tokens, 1) / num_experts, dtype=torch.float64))
    for _ in range(num_iterations):
        columns_1E = torch.logsumexp(z_TE, 0, keepdim=True)
        # A column of -inf belongs to an expert that nobody may have.
        z_TE = z_TE - torch.where(columns_1E.isinf(), 0.0, columns_1E - log_share)
        z_TE = torch.log_softmax(z_TE, -1)
    return z_TE.exp().to(logits_TE.dtype)
