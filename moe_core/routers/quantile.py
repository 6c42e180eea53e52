"""Even loads by thresholds: each expert's bias is moved to the quantile that gives it its fair share.

Shapes: T tokens, E experts, K top_k.
Source: the dual of the balanced assignment problem, solved one expert at a time (Bertsekas 1992, auction algorithms);
known in Megatron-Core as quantile balancing (2026).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.choosing import best
from moe_core.routers.logits import NEG_INF, linear_logits
from moe_core.routers.routing import Routing
from moe_core.routers.softmax_topk import softmax_choice
from moe_core.routers.thresholds import balancing_bias
from moe_core.spec.gate import Quantile


def quantile_gate(gate: Quantile, weights: GateWeights, call: GateCall) -> Routing:
    """Softmax top-k whose balancing bias is solved anew for each batch while training; the stored one when serving.

    While training shares and bias are float64: where the softmax saturates, float32 rounds the shares of many tokens to
    the same number, among which no threshold can tell.
    `statistics["selection_bias"]` is the bias found, (E,) float32, to be remembered (see `loss_free.remembered`).
    """
    logits_TE = linear_logits(weights, call)
    if not call.training or call.forced_TK is not None:
        return softmax_choice(logits_TE, call, renormalised=call.norm_topk_prob)
    shares_TE = torch.softmax(logits_TE.detach().double(), -1).masked_fill(logits_TE == NEG_INF, NEG_INF)
    counted_TE = shares_TE if call.real_T is None else shares_TE[call.real_T]
    start_E = torch.zeros_like(shares_TE[0]) if call.selection_bias_E is None else call.selection_bias_E
    bias_E = balancing_bias(counted_TE, call.top_k, gate.num_iterations, start_E.detach().double())
    evened_TE = shares_TE + bias_E
    chosen = replace(call, forced_TK=best(evened_TE, call.top_k))
    routing = softmax_choice(logits_TE, chosen, renormalised=call.norm_topk_prob)
    return replace(routing, statistics={"selection_bias": bias_E.float()}, evened_TE=evened_TE)
