"""Softmax over all experts, then the k best: the gate of Mixtral and OLMoE; or a softmax of the k best: gpt-oss.

Shapes: T tokens, D model width, E experts, K top_k.
Source: Shazeer et al. 2017, "Outrageously Large Neural Networks"; Jiang et al. 2024, "Mixtral of Experts".
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.checks import check_call, check_one_choice, check_shapes, check_values
from moe_core.routers.choosing import best, biased, without_masked
from moe_core.routers.full_precision import in_full_precision
from moe_core.routers.fused import fused_topk
from moe_core.routers.logits import linear_logits
from moe_core.routers.routing import Routing
from moe_core.spec.gate import SoftmaxTopk

PLAIN = SoftmaxTopk()


def route(
    hidden_TD: Tensor,
    weight_ED: Tensor,
    *,
    top_k: int,
    norm_topk_prob: bool = True,
    temperature: float = 1.0,
    bias_TE: Tensor | None = None,
    selection_bias_E: Tensor | None = None,
    forced_TK: Tensor | None = None,
) -> Routing:
    """Choose `top_k` experts for each token, in float32 whatever the input's dtype and under `torch.autocast`.

    hidden_TD and weight_ED may be any floating dtype. `bias_TE` (float32, may hold -inf) is added to the logits
    after the temperature and so changes weights too; `selection_bias_E` only changes which experts are picked.
    Where it masks so many that fewer than `top_k` are left, places are empty: -1 with weight 0.
    Ties go to the lower expert number. A temperature of 0 is the limit: all weight on the best expert.
    `forced_TK` replaces the choice, keeping the router's own weights over the forced experts.
    A NaN in a token's logits makes that token's weights NaN and touches no other token.
    Raises SpecError when shapes do not fit or hidden_TD is not floating; and for forced ids that are no expert or twice in
    a row and for a token with every expert masked, where these tensors are on the CPU (elsewhere nothing waits for them).
    """
    call = GateCall(
        hidden_TD,
        top_k,
        norm_topk_prob,
        temperature,
        bias_TE,
        selection_bias_E=selection_bias_E,
        forced_TK=forced_TK,
    )
    check_shapes(hidden_TD, weight_ED, top_k)
    check_call(call, weight_ED.shape[0])
    check_values(call, weight_ED.shape[0])
    check_one_choice(call, weight_ED.shape[0])
    with in_full_precision(hidden_TD.device):
        return without_masked(softmax_topk(PLAIN, {"weight": weight_ED}, call), call)


def softmax_topk(gate: SoftmaxTopk, weights: GateWeights, call: GateCall) -> Routing:
    """The gate's decision; see `route`."""
    renormalised = gate.sums_to_one(call.norm_topk_prob)
    at_once = fused_topk(weights, call, normalised=renormalised, by_logits=True)
    return at_once or softmax_choice(linear_logits(weights, call), call, renormalised=renormalised)


def softmax_choice(logits_TE: Tensor, call: GateCall, *, renormalised: bool) -> Routing:
    """The k best of the softmax of given logits."""
    gate = _one_hot_best if call.temperature == 0.0 else _softmax
    probs_TE = gate(logits_TE)
    ids_TK = call.forced_TK
    if ids_TK is None:
        # The softmax keeps the order of logits, and loses it where it rounds to zero.
        bias_E = call.selection_bias_E
        scores_TE = logits_TE if bias_E is None else biased(probs_TE, logits_TE, bias_E)
        ids_TK = best(scores_TE, call.top_k)
    # Renormalising is a softmax over the chosen logits: the same value, and no 0/0 when all of them are unlikely.
    weights_TK = gate(logits_TE.gather(-1, ids_TK)) if renormalised else probs_TE.gather(-1, ids_TK)
    return Routing(ids_TK, weights_TK, logits_TE, probs_TE)


def _softmax(logits_TE: Tensor) -> Tensor:
    return torch.softmax(logits_TE, dim=-1)


def _one_hot_best(logits_TE: Tensor) -> Tensor:
    best_T = logits_TE.argmax(-1, keepdim=True)
    return torch.zeros_like(logits_TE).scatter(-1, best_T, 1.0)
