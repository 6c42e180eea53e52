"""Two experts a token, the second one by chance while training.

Shapes: T tokens, E experts.
Source: Lepikhin et al. 2020, "GShard", arXiv 2006.16668, algorithm 1.
"""

from __future__ import annotations

import torch

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.choosing import emptied
from moe_core.routers.logits import linear_logits
from moe_core.routers.routing import Routing
from moe_core.routers.softmax_topk import softmax_choice
from moe_core.spec.gate import GshardTop2


def gshard_top2(gate: GshardTop2, weights: GateWeights, call: GateCall) -> Routing:
    """The two best; while training the second is kept with probability min(1, 2 · its weight).

    The weight of the first stays what it was when the second is left out, as in the paper. Capacity by position, all
    firsts before all seconds, is what `moe_core.routers.capacity` does for every gate. Forced ids are all taken.
    """
    routing = softmax_choice(linear_logits(weights, call), call, renormalised=call.norm_topk_prob)
    if not (call.training and gate.random_second) or call.rng is None or call.forced_TK is not None:
        return routing
    drawn_T = torch.rand(routing.weights_TK.shape[0], generator=call.rng, device=call.hidden_TD.device)
    keep_T2 = torch.ones_like(routing.weights_TK, dtype=torch.bool)
    keep_T2[:, 1] = ~(drawn_T >= 2.0 * routing.weights_TK[:, 1].detach())
    ids_T2, weights_T2 = emptied(routing.expert_ids_TK, routing.weights_TK, keep_T2)
    return Routing(ids_T2, weights_T2, routing.logits_TE, routing.probs_TE)
