"""BASE layers: while training tokens are dealt so that all experts get as many; when serving each takes its best.

Semantic BASE is the same gate, its centroids started from clusters of token embeddings (`moe_core.routers.centroids`).
Shapes: T tokens, E experts.
Source: Lewis et al. 2021, "BASE Layers: Simplifying Training of Large, Sparse Models", arXiv 2103.16716.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.routers.assignment import balanced_assignment
from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.choosing import best, biased
from moe_core.routers.logits import NEG_INF, linear_logits
from moe_core.routers.routing import Routing
from moe_core.spec.gate import Base


def base(gate: Base, weights: GateWeights, call: GateCall) -> Routing:
    """One expert a token, weighed by the sigmoid of its score; the balanced choice while training.

    Padding takes no part in the deal, nor does an expert that the prior masks for every token. One that it masks for some
    gets them only where even loads leave no other way.
    """
    logits_TE = linear_logits(weights, call)
    ids_T1 = call.forced_TK
    if ids_T1 is None:
        scores_TE = biased(logits_TE, logits_TE, call.selection_bias_E)
        ids_T1 = best(scores_TE, 1)
        if call.training and logits_TE.shape[0]:
            ids_T1 = _dealt(scores_TE, ids_T1, call.real_T)
    weights_T1 = torch.sigmoid(logits_TE.gather(-1, ids_T1))
    return Routing(ids_T1, weights_T1, logits_TE, torch.softmax(logits_TE, -1))


def _dealt(scores_TE: Tensor, ids_T1: Tensor, real_T: Tensor | None) -> Tensor:
    """The balanced choice of tokens that are real and finite; the others keep their best."""
    # Worse than any sum of what a whole batch could gain elsewhere, and still a number.
    floor = -1e6 * (1.0 + scores_TE[scores_TE.isfinite()].abs().max()) if scores_TE.isfinite().any() else -1.0
    taking_T = ~scores_TE.isnan().any(-1) if real_T is None else ~scores_TE.isnan().any(-1) & real_T
    open_E = torch.nonzero((scores_TE[taking_T] > NEG_INF).any(0))[:, 0]
    dealt_T1 = ids_T1.clone()
    if open_E.numel():
        scores_RE = scores_TE[taking_T][:, open_E]
        finite_RE = scores_RE.masked_fill(scores_RE.isinf(), float(floor))
        dealt_T1[taking_T, 0] = open_E[balanced_assignment(finite_RE)]
    return dealt_T1
