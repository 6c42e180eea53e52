"""How scores become choices: stable, so that ties go to the lower expert number.

T tokens, E experts, K top_k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.routers.logits import NEG_INF
from moe_core.routers.routing import NO_EXPERT


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
