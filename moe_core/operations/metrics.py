"""What is measured on routing, defined once: every figure is taken per layer and then averaged over layers.

Shapes: T tokens, L expert layers, E experts, K top_k, B batches, N domains, V vocabulary, R ranks (processes).
A load is how many of the T·K choices each expert got. Layers and batches in which nothing was routed do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from moe_core.errors import SpecError

DEAD_SHARE = 0.01


def load_share(load_LE: Tensor) -> Tensor:
    """f_i, each expert's share of its layer's load: (L, E) float64; rows of zeros where nothing was routed."""
    load_LE = load_LE.double()
    return load_LE / load_LE.sum(-1, keepdim=True).clamp(min=1.0)


def _mean_of_used(load_LE: Tensor, figure: Callable[[Tensor], Tensor], empty: float) -> float:
    """The mean of `figure` (shares (L, E) to (L,)) over the layers that routed anything; `empty` without any."""
    share_LE = load_share(load_LE)
    used_LE = share_LE[share_LE.sum(-1) > 0]
    return float(figure(used_LE).mean()) if used_LE.shape[0] else empty


def variation(load_LE: Tensor) -> float:
    """CV: the standard deviation of the load (over all E experts, not E - 1) over its mean; 0 is even."""
    return _mean_of_used(load_LE, lambda f: f.std(-1, correction=0) / f.mean(-1), 0.0)


def max_violation(load_LE: Tensor) -> float:
    """MaxVio: the busiest expert's load over the mean load, minus one; 0 is perfect balance.

    Of loads summed over a whole run it is MaxVio_global. Source: Wang et al. 2024, "Auxiliary-Loss-Free Load
    Balancing", arXiv 2408.15664.
    """
    return _mean_of_used(load_LE, lambda f: f.max(-1).values / f.mean(-1) - 1.0, 0.0)


def work_violation(load_LE: Tensor, cost_E: Tensor) -> float:
    """MaxVio of work, load times what a token on each expert costs: for layers whose experts are not alike."""
    return max_violation(load_LE.double() * cost_E.double())


def max_violation_batch(load_BLE: Tensor) -> float:
    """MaxVio_batch: MaxVio of each batch, then the mean over batches; with batches of one size at least that of all."""
    used = [max_violation(load_LE) for load_LE in load_BLE if int(load_LE.sum())]
    return sum(used) / len(used) if used else 0.0


def load_entropy(load_LE: Tensor) -> float:
    """Entropy of the load over log E: 1 where all carry the same, 0 where one carries all; 1 for a sole expert."""
    if load_LE.shape[1] < 2:
        return 1.0
    return _mean_of_used(load_LE, lambda f: -torch.xlogy(f, f).sum(-1) / math.log(f.shape[1]), 1.0)


def jain(load_LE: Tensor) -> float:
    """Jain's index, (sum f)² / (E · sum f²): 1 is even, 1/E where one carries all."""
    return _mean_of_used(load_LE, lambda f: f.sum(-1).square() / (f.shape[1] * f.square().sum(-1)), 1.0)


def gini(load_LE: Tensor) -> float:
    """Gini's coefficient: half the mean absolute difference of two experts over the mean; 0 is even, (E-1)/E is one."""

    def of(share_LE: Tensor) -> Tensor:
        num_experts = share_LE.shape[1]
        rank_E = torch.arange(1, num_experts + 1, dtype=torch.float64)
        ordered_LE = share_LE.sort(-1).values
        return ((2 * rank_E - num_experts - 1) * ordered_LE).sum(-1) / (num_experts * share_LE.sum(-1))

    return _mean_of_used(load_LE, of, 0.0)


def dead_experts(load_LE: Tensor) -> int:
    """How many experts of all layers carry less than one hundredth of the fair share."""
    fair_L1 = load_LE.double().mean(-1, keepdim=True)
    return int((load_LE.double() < DEAD_SHARE * fair_L1).sum())


def rank_balancedness(load_LE: Tensor, rank_E: Tensor) -> float:
    """The busiest rank's load over the mean rank's, per layer and only then averaged; 1 is even.

    rank_E (int64) says which of ranks 0..R-1 holds each expert. Averaging over layers before the maximum hides
    opposite imbalances.
    """
    num_ranks = int(rank_E.max()) + 1
    share_LE = load_share(load_LE)
    load_LR = share_LE.new_zeros(share_LE.shape[0], num_ranks).index_add_(1, rank_E, share_LE)
    return _mean_of_used(load_LR, lambda f: f.max(-1).values / f.mean(-1), 1.0)


def drop_rate(kept_TK: Tensor) -> float:
    """Share of the T·K choices that a capacity dropped; kept_TK is bool. 0 for no tokens."""
    return float((~kept_TK).double().mean()) if kept_TK.numel() else 0.0


def router_z(logits_TE: Tensor, levels_TS: Tensor | None = None) -> float:
    """Mean squared logsumexp of the logits; (ln E)² for zero logits. Source: Zoph et al. 2022, "ST-MoE".

    Of a gate that takes several softmaxes of a token (hierarchical), the mean over these: `levels_TS` are their logsumexps.
    """
    found_TS = torch.logsumexp(logits_TE.double(), -1) if levels_TS is None else levels_TS.double()
    return float(found_TS.square().mean()) if found_TS.shape[0] else 0.0


def margins(scores_TE: Tensor, top_k: int) -> Tensor:
    """How far the k-th best score of each token is above the (k+1)-th: (T,) float64.

    Scores are those that choose (`moe_core.routers.scores`). A margin near 0 is a choice that rounding may turn over; it
    is +inf where nothing else could be chosen (k = E, or all others are masked with -inf). Raises SpecError for k outside
    1 to E.
    """
    num_experts = scores_TE.shape[1]
    if not 1 <= top_k <= num_experts:
        raise SpecError(f"top_k ({top_k}) must be from 1 to the {num_experts} experts that have scores")
    if top_k == num_experts:
        return torch.full((scores_TE.shape[0],), math.inf, dtype=torch.float64)
    best_TK = scores_TE.double().topk(top_k + 1, dim=-1).values
    next_T = best_TK[:, -1]
    return torch.where(next_T == -math.inf, math.inf, best_TK[:, -2] - next_T)


def saturation(early_TK: Tensor, final_TK: Tensor) -> float:
    """|E_early ∩ E_final| / |E_final|, mean over tokens that chose any: how far routing has settled; 1 without any.

    Both int64, -1 in empty places, which are shared by nobody. Source: OLMoE, arXiv 2409.02060.
    """
    common_T, chosen_T = _common_T(early_TK, final_TK), (final_TK >= 0).sum(-1)
    has_T = chosen_T > 0
    return float((common_T[has_T] / chosen_T[has_T]).mean()) if has_T.any() else 1.0


def agreement(one_TK: Tensor, other_TK: Tensor) -> float:
    """Top-k Jaccard, |A ∩ B| / |A ∪ B|, mean over tokens: how alike two engines or precisions route.

    Both int64, -1 in empty places; a token that chose nobody in both does not count, and without any other it is 1.
    """
    common_T = _common_T(one_TK, other_TK)
    union_T = (one_TK >= 0).sum(-1) + (other_TK >= 0).sum(-1) - common_T
    has_T = union_T > 0
    return float((common_T[has_T] / union_T[has_T]).mean()) if has_T.any() else 1.0


def _common_T(one_TK: Tensor, other_TK: Tensor) -> Tensor:
    if one_TK.shape[0] != other_TK.shape[0]:
        raise SpecError(
            f"{one_TK.shape[0]} and {other_TK.shape[0]} tokens cannot be compared; route the same ones"
        )
    same_TKK = (one_TK[:, :, None] == other_TK[:, None, :]) & (one_TK[:, :, None] >= 0)
    return same_TKK.any(-1).sum(-1).double()


def coactivation(expert_ids_TK: Tensor, num_experts: int) -> Tensor:
    """N_ij / N_i over all pairs of a token's experts: (E, E) float64, zero diagonal, zero rows for unused experts.

    N_i counts tokens that chose i, N_ij tokens that chose i and j, wherever the two stand among the k; -1 is an empty
    place.
    """
    ids_TK = expert_ids_TK.cpu()
    # Empty places fall into a column of their own, which is cut off.
    chosen_TE = torch.zeros(ids_TK.shape[0], num_experts + 1, dtype=torch.float64)
    chosen_TE.scatter_(1, torch.where(ids_TK >= 0, ids_TK, num_experts), 1.0)
    chosen_TE = chosen_TE[:, :num_experts]
    together_EE = chosen_TE.T @ chosen_TE
    count_E1 = together_EE.diagonal().clone().clamp(min=1.0)[:, None]
    return together_EE.fill_diagonal_(0.0) / count_E1


def domain_specialisation(load_NLE: Tensor) -> Tensor:
    """P(expert | domain) of each layer, (N, L, E) float64: the share of a domain's choices that an expert gets."""
    return load_share(load_NLE)


def vocabulary_specialisation(
    expert_ids_TK: Tensor, token_T: Tensor, num_experts: int, vocab_size: int
) -> tuple[Tensor, float]:
    """The share of a token id's occurrences that an expert gets: (V, E) float64, and the mean over seen ids of its peak.

    The peak is 1 where each id has an expert of its own. expert_ids_TK holds -1 in empty places, token_T ids below
    vocab_size. Source: OLMoE, arXiv 2409.02060, section 5.4.
    """
    flat = (token_T[:, None] * num_experts + expert_ids_TK)[expert_ids_TK >= 0]
    count_VE = torch.bincount(flat, minlength=vocab_size * num_experts).view(vocab_size, num_experts).double()
    seen_V = torch.bincount(token_T, minlength=vocab_size).double()
    share_VE = count_VE / seen_V.clamp(min=1.0)[:, None]
    peak_V = share_VE.max(-1).values[seen_V > 0]
    return share_VE, float(peak_V.mean()) if peak_V.numel() else 0.0


def load_figures(load_LE: Tensor) -> dict[str, float | int]:
    """Every figure of a load, for a report."""
    return {
        "max_vio": max_violation(load_LE),
        "variation": variation(load_LE),
        "entropy": load_entropy(load_LE),
        "jain": jain(load_LE),
        "gini": gini(load_LE),
        "dead_experts": dead_experts(load_LE),
    }
