"""As many experts as a token needs: the fewest whose probabilities reach p together.

Shapes: T tokens, E experts, K places.
Source: Huang et al. 2024, "Harder Tasks Need More Experts: Dynamic Routing in MoE Models", arXiv 2403.07652.
"""

from __future__ import annotations

import torch

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.choosing import emptied
from moe_core.routers.logits import NEG_INF, linear_logits
from moe_core.routers.routing import Routing
from moe_core.routers.softmax_topk import softmax_choice
from moe_core.spec.gate import TopP


def top_p(gate: TopP, weights: GateWeights, call: GateCall) -> Routing:
    """Experts in the order of their probability until p is reached; at least one, at most top_k.

    Places beyond are empty. With `norm_topk_prob` the weights of the chosen sum to one. Forced ids are all taken.
    """
    routing = softmax_choice(linear_logits(weights, call), call, renormalised=False)
    ids_TK, probs_TK = routing.expert_ids_TK, routing.weights_TK
    if call.forced_TK is None:
        before_TK = probs_TK.detach().cumsum(-1) - probs_TK.detach()
        # `not >=` rather than `<`: a NaN keeps its places, and its token its NaN.
        keep_TK = ~(before_TK >= gate.p)
        keep_TK[:, 0] = True
    else:
        keep_TK = torch.ones_like(ids_TK, dtype=torch.bool)
    weights_TK = probs_TK
    if call.norm_topk_prob and call.temperature > 0.0:
        chosen_TK = routing.logits_TE.gather(-1, ids_TK).masked_fill(~keep_TK, NEG_INF)
        weights_TK = torch.softmax(chosen_TK, dim=-1)
    ids_TK, weights_TK = emptied(ids_TK, weights_TK, keep_TK)
    return Routing(ids_TK, weights_TK, routing.logits_TE, routing.probs_TE)
