"""How scores become choices: stable, so that ties go to the lower expert number.

T tokens, E experts, K top_k.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moe_core.routers.call import GateCall
from moe_core.routers.logits import NEG_INF
from moe_core.routers.routing import NO_EXPERT, Routing


def best(scores_TE: Tensor, top_k: int) -> Tensor:
    """Ids (T, K) of the k highest scores, best first. A stable sort, because topk promises nothing about ties."""
    return torch.sort(scores_TE.detach(), dim=-1, descending=True, stable=True).indices[:, :top_k]


def biased(scores_TE: Tensor, logits_TE: Tensor, selection_bias_E: Tensor | None) -> Tensor:
    """Scores that pick: with the balancing bias, and -inf where the prior masks an expert. No gradient."""
    scores_TE = scores_TE.detach()
    if selection_bias_E is not None:
        scores_TE = scores_TE + selection_bias_E
    return torch.where(logits_TE.detach() == NEG_INF, NEG_INF, scores_TE)


def emptied(ids_TK: Tensor, weights_TK: Tensor, keep_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and weights with the places outside `keep_TK` empty."""
    return torch.where(keep_TK, ids_TK, NO_EXPERT), torch.where(keep_TK, weights_TK, 0.0)


def without_masked(routing: Routing, call: GateCall, *, leaves_enough: bool = False) -> Routing:
    """The decision with places empty that the domain prior and hidden twins leave no expert for.

    `leaves_enough`: there are none such, and nothing is looked for.
    """
    if leaves_enough or call.bias_TE is None or call.forced_TK is not None or routing.mix is not None:
        return routing
    at_TK = routing.expert_ids_TK.clamp(min=0)
    masked_TK = (call.bias_TE.gather(-1, at_TK) == NEG_INF) & (routing.logits_TE.gather(-1, at_TK) == NEG_INF)
    ids_TK, weights_TK = emptied(routing.expert_ids_TK, routing.weights_TK, ~masked_TK)
    return replace(routing, expert_ids_TK=ids_TK, weights_TK=weights_TK)
