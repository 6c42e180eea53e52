"""The scores that choose experts, for who wants to know how near a choice was; and those that shares are made of.

T tokens, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.routers.choosing import biased
from moe_core.routers.logits import NEG_INF
from moe_core.routers.routing import Routing
from moe_core.routers.sigmoid_groups import OUTSIDE, expert_scores, inside_best_groups, log_expert_scores
from moe_core.spec.gate import Base, Gate, Hash, SigmoidGroups, Sparsemax


@torch.no_grad()
def choosing_scores(gate: Gate, routing: Routing) -> Tensor:
    """(T, E): what a served token's experts are the k best of; -inf for experts that it could not choose.

    Score function and selection bias are in it, and experts outside the best groups are out of reach, or where these hold
    too few come after all inside. Gate `hash` chooses
    by its table, so that all others are.
    """
    logits_TE, bias_E = routing.logits_TE, routing.selection_bias_E
    if isinstance(gate, Hash):
        return torch.full_like(logits_TE, NEG_INF)
    if isinstance(gate, SigmoidGroups):
        scores_TE = biased(expert_scores(gate, logits_TE), logits_TE, bias_E)
        inside_TE = inside_best_groups(gate, scores_TE)
        outside_TE = inside_TE < scores_TE - OUTSIDE / 2
        # Too few left in the chosen groups for all places: the best of the others fill up.
        num_inside_T1 = (~outside_TE & (scores_TE > NEG_INF)).sum(-1, keepdim=True)
        return inside_TE.masked_fill(outside_TE & (num_inside_T1 >= routing.expert_ids_TK.shape[1]), NEG_INF)
    if bias_E is None:
        return logits_TE
    return biased(logits_TE if isinstance(gate, Sparsemax | Base) else routing.probs_TE, logits_TE, bias_E)


def log_scores(gate: Gate, routing: Routing) -> Tensor:
    """(T, E): what the gate's own shares are the softmax of, with its gradient; -inf for experts that it cannot give any.

    For a sparsemax, whose shares are no softmax of anything, its logits.
    """
    logits_TE = routing.logits_TE
    if isinstance(gate, SigmoidGroups):
        return log_expert_scores(gate, logits_TE)
    if isinstance(gate, Hash):
        num_experts, ids_TK = logits_TE.shape[1], routing.wanted_TK
        row_TE = logits_TE.new_zeros(logits_TE.shape[0], num_experts + 1, dtype=torch.bool)
        row_TE = row_TE.scatter(-1, ids_TK.where(ids_TK >= 0, num_experts), True)[:, :num_experts]
        learnt_TE = logits_TE if gate.weights == "learned" else torch.zeros_like(logits_TE)
        return learnt_TE.masked_fill(~row_TE, NEG_INF)
    return logits_TE
