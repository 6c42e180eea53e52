"""Softmax over all experts, then the k best: the gate of Mixtral and of Switch.

Shapes: T tokens, D model width, E experts, K top_k.
Source: Shazeer et al. 2017, "Outrageously Large Neural Networks"; Jiang et al. 2024, "Mixtral of Experts".
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.routers.routing import Routing

NEG_INF = float("-inf")


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
    """Choose `top_k` experts for each token, in float32 whatever the input's dtype.

    hidden_TD and weight_ED may be any floating dtype. `bias_TE` (float32, may hold -inf) is added to the logits
    after the temperature and so changes weights too; `selection_bias_E` only changes which experts are picked.
    Ties go to the lower expert number. A temperature of 0 is the limit: all weight on the best expert.
    `forced_TK` replaces the choice, keeping the router's own weights over the forced experts.
    A NaN in a token's logits makes that token's weights NaN and touches no other token.
    Raises SpecError when shapes do not fit.
    """
    _check(hidden_TD, weight_ED, top_k, temperature)
    raw_TE = torch.nn.functional.linear(hidden_TD.float(), weight_ED.float())
    logits_TE = raw_TE if temperature in (0.0, 1.0) else raw_TE / temperature
    if bias_TE is not None:
        logits_TE = logits_TE + bias_TE
    gate = _one_hot_best if temperature == 0.0 else _softmax
    probs_TE = gate(logits_TE)
    ids_TK = _select(logits_TE, probs_TE, top_k, selection_bias_E) if forced_TK is None else forced_TK
    # Renormalising is a softmax over the chosen logits: the same value, and no 0/0 when all of them are unlikely.
    weights_TK = gate(logits_TE.gather(-1, ids_TK)) if norm_topk_prob else probs_TE.gather(-1, ids_TK)
    return Routing(ids_TK, weights_TK, logits_TE, probs_TE)


def _check(hidden_TD: Tensor, weight_ED: Tensor, top_k: int, temperature: float) -> None:
    if hidden_TD.ndim != 2 or weight_ED.ndim != 2 or hidden_TD.shape[1] != weight_ED.shape[1]:
        raise SpecError(
            f"hidden {tuple(hidden_TD.shape)} and router weight {tuple(weight_ED.shape)} must be (T, D) and (E, D)"
        )
    if not 1 <= top_k <= weight_ED.shape[0]:
        raise SpecError(f"top_k ({top_k}) must be between 1 and the number of experts ({weight_ED.shape[0]})")
    if not temperature >= 0.0:
        raise SpecError(f"temperature ({temperature}) must not be negative")


def _select(logits_TE: Tensor, probs_TE: Tensor, top_k: int, selection_bias_E: Tensor | None) -> Tensor:
    """Ids of the k best, best first. A stable sort, because topk promises nothing about ties."""
    scores_TE = logits_TE.detach()
    if selection_bias_E is not None:
        biased_TE = probs_TE.detach() + selection_bias_E
        scores_TE = torch.where(scores_TE == NEG_INF, scores_TE, biased_TE)
    return torch.sort(scores_TE, dim=-1, descending=True, stable=True).indices[:, :top_k]


def _softmax(logits_TE: Tensor) -> Tensor:
    return torch.softmax(logits_TE, dim=-1)


def _one_hot_best(logits_TE: Tensor) -> Tensor:
    best_T = logits_TE.argmax(-1, keepdim=True)
    return torch.zeros_like(logits_TE).scatter(-1, best_T, 1.0)
