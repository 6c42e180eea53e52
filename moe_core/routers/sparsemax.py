"""Sparsemax: the logits projected on the simplex, so that experts out of reach get exactly zero.

Shapes: T tokens, E experts, K places.
Source: Martins & Astudillo 2016, "From Softmax to Sparsemax", arXiv 1602.02068. As a gate it has no known source.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.choosing import best, biased, emptied
from moe_core.routers.logits import linear_logits
from moe_core.routers.routing import Routing
from moe_core.spec.gate import Sparsemax


def sparsemax_gate(gate: Sparsemax, weights: GateWeights, call: GateCall) -> Routing:
    """The experts in the support, at most top_k of them; other places are empty.

    With `norm_topk_prob` the k best logits are projected by themselves, so that weights sum to one however many experts
    the cap cuts off; without it the weights are the shares among all experts. The balancing bias moves who is among the
    k best. A temperature of 0 leaves one expert.
    """
    logits_TE = linear_logits(weights, call, sparsemax)
    if call.temperature == 0.0:
        # The limit: a gap of one to the second best leaves the best alone.
        best_T1 = logits_TE.argmax(-1, keepdim=True)
        logits_TE = logits_TE.scatter_add(-1, best_T1, torch.ones_like(logits_TE))
    shares_TE = sparsemax(logits_TE)
    ids_TK = call.forced_TK
    if ids_TK is None:
        bias_E = call.selection_bias_E
        ids_TK = best(logits_TE if bias_E is None else biased(logits_TE, logits_TE, bias_E), call.top_k)
    among_TK = logits_TE.gather(-1, ids_TK)
    weights_TK = sparsemax(among_TK) if call.norm_topk_prob else shares_TE.gather(-1, ids_TK)
    if call.forced_TK is None:
        ids_TK, weights_TK = emptied(ids_TK, weights_TK, (weights_TK > 0.0) | weights_TK.isnan())
    return Routing(ids_TK, weights_TK, logits_TE, shares_TE)


def sparsemax(logits_TE: Tensor) -> Tensor:
    """The nearest point of the simplex to each row: non-negative, summing to one, with exact zeros.

    Rows may hold -inf, but not only -inf; a NaN makes its row NaN. The gradient is the upstream one minus its mean over
    the support, and zero outside.
    """
    # What lies more than one below the best is outside of the support; held there, -inf does no harm.
    z_TE = (logits_TE - logits_TE.detach().amax(-1, keepdim=True)).clamp(min=-2.0)
    with torch.no_grad():
        sorted_TE = z_TE.sort(-1, descending=True).values
        count_E = torch.arange(1, z_TE.shape[-1] + 1, device=z_TE.device, dtype=z_TE.dtype)
        inside_TE = 1.0 + count_E * sorted_TE > sorted_TE.cumsum(-1)
        size_T1 = inside_TE.sum(-1, keepdim=True).clamp(min=1)
        least_T1 = sorted_TE.gather(-1, size_T1 - 1)
        support_TE = z_TE >= least_T1
    total_T1 = torch.where(support_TE, z_TE, 0.0).sum(-1, keepdim=True)
    threshold_T1 = (total_T1 - 1.0) / support_TE.sum(-1, keepdim=True)
    return torch.where(support_TE | z_TE.isnan(), (z_TE - threshold_T1).clamp(min=0.0), 0.0)


def sparsest(logits_TE: Tensor) -> Tensor:
    """(T,): max over shares p of <p, logits> - |p|² / 2, reached by sparsemax, which is its gradient.

    Rows may hold -inf, but not only -inf. For sparsemax it is what the logsumexp is for a softmax.
    """
    shares_TE = sparsemax(logits_TE.detach())
    return (shares_TE * logits_TE.masked_fill(shares_TE == 0.0, 0.0)).sum(-1) - shares_TE.square().sum(-1) / 2
