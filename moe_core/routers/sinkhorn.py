"""Even loads while training by Sinkhorn's iterations on the scores that pick.

Shapes: T tokens, E experts, K top_k.
Source: Sinkhorn 1964; Clark et al. 2022, "Unified Scaling Laws for Routed Language Models", arXiv 2202.01169 (S-BASE).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.choosing import best, biased
from moe_core.routers.logits import NEG_INF, linear_logits
from moe_core.routers.routing import Routing
from moe_core.routers.softmax_topk import softmax_choice
from moe_core.spec.gate import Sinkhorn


def sinkhorn_gate(gate: Sinkhorn, weights: GateWeights, call: GateCall) -> Routing:
    """While training the k best of the evened shares, weighed by the gate's own softmax; plain top-k when serving.

    A selection bias is on the scale of shares, those that sum to one for each token: in training it is added to the evened
    ones, when serving to the softmax. Equal sums are told apart by the logarithm of the shares, which is finite for every
    expert that is open: those that a prior masks come last, in whatever order the shares underflow.
    """
    logits_TE = linear_logits(weights, call)
    plain = softmax_choice(logits_TE, call, renormalised=call.norm_topk_prob)
    if not call.training or call.forced_TK is not None or not logits_TE.shape[0]:
        return plain
    logs_TE = _evened(logits_TE.detach(), call.real_T, gate.num_iterations)
    ids_TK, evened_TE = _best(logs_TE, logits_TE, call)
    chosen_TK = logits_TE.gather(-1, ids_TK)
    weights_TK = torch.softmax(chosen_TK, -1) if call.norm_topk_prob else plain.probs_TE.gather(-1, ids_TK)
    return Routing(ids_TK, weights_TK, logits_TE, plain.probs_TE, evened_TE=evened_TE)


def _evened(logits_TE: Tensor, real_T: Tensor | None, num_iterations: int) -> Tensor:
    """(T, E) float64: logarithms of the evened shares; of tokens that take no part, their own logits.

    Padding takes no share of an expert; what is not finite, and a token for which all is masked, would spread over columns.
    """
    num_open_T = (logits_TE > NEG_INF).sum(-1)
    sound_T = (logits_TE < -NEG_INF).all(-1) & (num_open_T > 0)
    sound_T = sound_T if real_T is None else sound_T & real_T
    # Of float64 logits `double` is no copy.
    logs_TE = logits_TE.double().clone()
    logs_TE[sound_T] = sinkhorn(logs_TE[sound_T], num_iterations)
    return logs_TE


def _best(logs_TE: Tensor, logits_TE: Tensor, call: GateCall) -> tuple[Tensor, Tensor]:
    """(T, K) ids by share plus selection bias, then by the share's logarithm, then by number; and the scores, (T, E)."""
    if call.selection_bias_E is None:
        return best(logs_TE, call.top_k), logs_TE
    order_TE = best(logs_TE, logs_TE.shape[1])
    scores_TE = biased(torch.softmax(logs_TE, -1), logits_TE, call.selection_bias_E)
    return order_TE.gather(-1, best(scores_TE.gather(-1, order_TE), call.top_k)), scores_TE


def sinkhorn(logits_TE: Tensor, num_iterations: int) -> Tensor:
    """exp(logits) with rows and columns scaled in turn: rows sum to 1, columns (nearly) to T / E. Its logarithms, float64.

    The last scaling is that of the rows. Stays in logarithms throughout, so that nothing underflows: -inf is what was -inf.
    `logits_TE` may hold -inf, but no row of nothing else.
    """
    num_tokens, num_experts = logits_TE.shape
    z_TE = logits_TE.double()
    log_share = math.log(max(num_tokens, 1) / num_experts)
    for _ in range(num_iterations):
        columns_1E = torch.logsumexp(z_TE, 0, keepdim=True)
        # A column of -inf belongs to an expert that nobody may have.
        z_TE = z_TE - torch.where(columns_1E.isinf(), 0.0, columns_1E - log_share)
        z_TE = torch.log_softmax(z_TE, -1)
    return z_TE
