"""The losses of routing, as values: one call is one layer, padding is masked out, layers are never pooled.

A model's loss is the mean of its layers' losses. Pooling counts and probabilities over layers before multiplying them lets
opposite imbalances of two layers cancel, which is not done here.

Shapes: T tokens, E experts, K places, N domains, B sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.routers.logits import NEG_INF
from moe_core.routers.routing import Routing, load_of
from moe_core.routers.scores import log_scores
from moe_core.routers.sparsemax import sparsest
from moe_core.spec.gate import Gate, Sparsemax


def label_loss(
    routing: Routing, labels_NE: Tensor, domain_T: Tensor, real_T: Tensor, gate: Gate | None = None
) -> Tensor:
    """-log of the share that the gate gives to the experts of the token's domain; mean over such tokens.

    Shares are the gate's own (None: a softmax of the logits). Those of sparsemax can be exactly zero; in the place of the
    logarithm stands its own loss, which too is zero where these experts have everything and has a gradient everywhere else.
    A token that can reach none of them (a twin is hidden from it, a table has other experts) is not asked for what it
    cannot give.
    Source: Martins & Astudillo 2016, section 3; Blondel et al. 2020, "Learning with Fenchel-Young Losses": with Ω the
    regulariser of the gate's projection, max over shares p of <p, logits> - Ω(p), less the same over p of the domain's own
    experts alone; for a softmax that is -log of their probability.
    """
    if not labels_NE.shape[0]:
        return routing.probs_TE.new_zeros(())
    scores_TE = routing.logits_TE if gate is None else log_scores(gate, routing)
    seen_TE = labels_NE.bool()[domain_T.clamp(min=0)] & (scores_TE != NEG_INF)
    counted_T = real_T & (domain_T >= 0) & seen_TE.any(-1)
    if not counted_T.any():
        return routing.probs_TE.new_zeros(())
    scores_RE = scores_TE[counted_T]
    if not isinstance(gate, Sparsemax):
        scores_RE = torch.log_softmax(scores_RE, dim=-1)
    own_RE = scores_RE.masked_fill(~seen_TE[counted_T], NEG_INF)
    if isinstance(gate, Sparsemax):
        return (sparsest(scores_RE) - sparsest(own_RE)).mean()
    return -torch.logsumexp(own_RE, dim=-1).mean()


def balance_loss(
    routing: Routing, real_T: Tensor, share_E: Tensor | None = None, cost_E: Tensor | None = None
) -> Tensor:
    """E · sum over experts of (share of assignments · mean probability): 1 when even, E when one takes all.

    `share_E` (float32, sums to 1) stands in for the batch's own share: that of a larger batch (the global-batch form:
    the sum of `load_of` over ranks and micro-batches, normalised), or of the past.
    `cost_E` (positive) is what a token on each expert counts for, where experts are not alike: the loss is then 1 where
    every expert has as much work, load times cost. Only the ratios of the costs matter.
    Source: Fedus et al. 2021, "Switch Transformers", eq. 4, with the k assignments of a token counted each; Qiu et al.
    2025, "Demons in the Detail" (the global batch); Jin et al. 2024, "MoE++", eq. 7 (costs, there 1 and τ).
    """
    num_experts = routing.probs_TE.shape[1]
    if not real_T.any():
        return routing.probs_TE.new_zeros(())
    if share_E is None:
        share_E = share_of_load(load_of(routing, real_T))
    mean_E = routing.probs_TE[real_T].mean(0)
    if cost_E is None:
        return num_experts * (share_E * mean_E).sum()
    return cost_E.reciprocal().sum() * (cost_E * share_E * mean_E).sum()


def share_of_load(load_E: Tensor) -> Tensor:
    """Counts as shares that sum to one, float32; even shares where nothing was counted."""
    load_E = load_E.float()
    total = load_E.sum(-1, keepdim=True)
    return torch.where(total > 0, load_E / total.clamp(min=1.0), 1.0 / load_E.shape[-1])


def sequence_balance_loss(
    routing: Routing, real_T: Tensor, sequence_T: Tensor, cost_E: Tensor | None = None
) -> Tensor:
    """The balance loss of each sequence by itself, then their mean: keeps every single sequence from being lopsided.

    `sequence_T` (int64) numbers the sequence of each token. Sequences without a real token do not count.
    `cost_E` as in `balance_loss`.
    Source: DeepSeek-AI 2024, "DeepSeek-V3", eq. 17-20.
    """
    if not real_T.any():
        return routing.probs_TE.new_zeros(())
    num_experts = routing.probs_TE.shape[1]
    names, place_R = torch.unique(sequence_T[real_T], return_inverse=True)
    ids_RK = routing.wanted_TK[real_T]
    cells = (place_R[:, None] * num_experts + ids_RK)[ids_RK >= 0]
    counts = torch.bincount(cells, minlength=len(names) * num_experts).view(-1, num_experts)
    mean_BE = routing.probs_TE.new_zeros(len(names), num_experts).index_add(
        0, place_R, routing.probs_TE[real_T]
    )
    mean_BE = mean_BE / torch.bincount(place_R, minlength=len(names))[:, None]
    if cost_E is None:
        return num_experts * (share_of_load(counts) * mean_BE).sum(-1).mean()
    return cost_E.reciprocal().sum() * (cost_E * share_of_load(counts) * mean_BE).sum(-1).mean()


def importance_loss(routing: Routing, real_T: Tensor) -> Tensor:
    """Squared coefficient of variation of the experts' summed weights: 0 when all are as important.

    Choices and weights are the gate's own, before any expert was full: what a capacity leaves is even whatever it wants.
    Source: Shazeer et al. 2017, section 4.
    """
    if not real_T.any():
        return routing.probs_TE.new_zeros(())
    ids_RK, weights_RK = routing.wanted_TK[real_T], routing.wanted_weights_TK[real_T]
    chosen_RK = ids_RK >= 0
    nothing_E = routing.probs_TE.new_zeros(routing.probs_TE.shape[1])
    importance_E = nothing_E.index_add(0, ids_RK[chosen_RK], weights_RK[chosen_RK])
    return squared_variation(importance_E)


def squared_variation(values_E: Tensor) -> Tensor:
    """Variance over squared mean; 0 for all zeros."""
    mean = values_E.mean()
    return (values_E - mean).square().mean() / mean.square().clamp(min=1e-20)


def z_loss(routing: Routing, real_T: Tensor) -> Tensor:
    """Mean squared logsumexp of the logits: keeps them small. Source: Zoph et al. 2022, "ST-MoE".

    Of a gate that takes several softmaxes of a token (hierarchical), the mean over these.
    """
    if not real_T.any():
        return routing.logits_TE.new_zeros(())
    return routing.normalisers_TS[real_T].square().mean()
