"""Even loads by thresholds: each expert's bias is moved to the quantile that gives it its fair share.

Shapes: T tokens, E experts, K top_k.
Source: the dual of the balanced assignment problem, solved one expert at a time (Bertsekas 1992, auction algorithms);
known in Megatron-Core as quantile balancing (2026).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.logits import NEG_INF, linear_logits
from moe_core.routers.routing import Routing
from moe_core.routers.softmax_topk import softmax_choice
from moe_core.routers.thresholds import balancing_bias
from moe_core.spec.gate import Quantile


def quantile_gate(gate: Quantile, weights: GateWeights, call: GateCall) -> Routing:
    """Softmax top-k whose balancing bias is solved anew for each batch while training; the stored one when serving.

    `statistics["selection_bias"]` is the bias found, (E,), to be remembered (see `loss_free.remembered`).
    """
    logits_TE = linear_logits(weights, call)
    found: dict[str, Tensor] = {}
    if call.training and call.forced_TK is None:
        scores_TE = torch.where(logits_TE == NEG_INF, NEG_INF, torch.softmax(logits_TE, -1)).detach()
        if call.real_T is not None:
            scores_TE = scores_TE[call.real_T]
        start_E = torch.zeros_like(logits_TE[0]) if call.selection_bias_E is None else call.selection_bias_E
        bias_E = balancing_bias(scores_TE, call.top_k, gate.num_iterations, start_E.detach())
        call = replace(call, selection_bias_E=bias_E)
        found["selection_bias"] = bias_E
    routing = softmax_choice(logits_TE, call, renormalised=call.norm_topk_prob)
    return replace(routing, statistics=found)
