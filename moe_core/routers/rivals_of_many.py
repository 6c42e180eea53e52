"""Whom each expert must beat, whatever the biases are: all contenders compared for each expert.

Shapes: T tokens, t of them at once, E experts, K top_k, M contenders; all float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.routers.logits import NEG_INF

# Tokens at once, the greatest scale of the others' shares, and what rounding may hide.
ROWS_AT_ONCE = 128
MAX_SCALE = 1e300
LINE_SLACK = 1e-12


def rivals_of_many(noisy_TE: Tensor, rest_TE: Tensor, bias_E: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """(T, E) int64: the k-th of the other experts in the order of the shares that one must have to beat them; and where
    there are fewer open ones, (T, E) bool."""
    counts_T, order_TE = _contenders(noisy_TE, rest_TE, bias_E, top_k)
    rival_TE = torch.empty_like(order_TE)
    needed_TE = torch.empty_like(noisy_TE)
    # Tokens with about as many contenders go together, and no more than fit into a cache.
    for rows_t in counts_T.argsort().split(ROWS_AT_ONCE):
        num = max(top_k + 1, int(counts_T[rows_t].max()))
        contender_tM = order_TE[rows_t, :num]
        logit_tM = noisy_TE[rows_t].gather(-1, contender_tM)
        needed_tEM = _needed_shares(logit_tM, rest_TE[rows_t], contender_tM, bias_E)
        # From the smallest: the largest k-th is the (M + 1 - k)-th of M.
        kth = needed_tEM.kthvalue(num + 1 - top_k, dim=-1)
        rival_TE[rows_t] = contender_tM.gather(-1, kth.indices)
        needed_TE[rows_t] = kth.values
    return rival_TE, needed_TE == NEG_INF


def _needed_shares(logit_tM: Tensor, rest_tE: Tensor, contender_tM: Tensor, bias_E: Tensor) -> Tensor:
    """(t, E, M): the share that each expert must have to beat each contender; -inf for a masked one and for itself."""
    share_tEM = (logit_tM[:, None] - rest_tE[..., None]).exp()
    needed_tEM = (share_tEM + bias_E[contender_tM][:, None] - bias_E[:, None]) / (1.0 + share_tEM)
    own_tEM = contender_tM[:, None] == torch.arange(bias_E.shape[0], device=bias_E.device)[:, None]
    return needed_tEM.masked_fill(own_tEM | (logit_tM == NEG_INF)[:, None], NEG_INF)


def _contenders(noisy_TE: Tensor, rest_TE: Tensor, bias_E: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """(T,) int64 and (T, E) int64: how many experts may be the k-th of the others, for any expert, and their order.

    When an expert's own share moves, the others' are scaled alike, from p to c·p: c·p + b are lines that rise with c. The
    (k+1)-th line at c = 1 bounds each expert's c from above, and the k-th line at the greatest c bounds them from below.
    """
    log_all_T1 = noisy_TE.logsumexp(-1, keepdim=True)
    share_TE, is_masked_TE = (noisy_TE - log_all_T1).exp(), noisy_TE == NEG_INF
    scale_TE = (log_all_T1 - rest_TE).exp().clamp(max=MAX_SCALE)

    def lines(c_T1: Tensor | float) -> Tensor:
        return (c_T1 * share_TE + bias_E).masked_fill(is_masked_TE, NEG_INF)

    first = lines(1.0).topk(top_k + 1, dim=-1)
    # One that is in drops behind a (k+1)-th that only rises, and leaves no more than all; one that is out leaves less
    # than now.
    left_TE = (1.0 - first.values[:, top_k:] + bias_E).clamp(0.0, 1.0)
    in_TK = first.indices[:, :top_k]
    highest_T1 = (left_TE * scale_TE).gather(-1, in_TK).amax(-1, keepdim=True).clamp(1.0, MAX_SCALE)
    high_TE = lines(highest_T1)
    kth_T1 = high_TE.topk(top_k, dim=-1).values[:, -1:]
    lowest_T1 = (
        ((1.0 - LINE_SLACK * (1.0 + kth_T1.abs()) - kth_T1 + bias_E) * scale_TE)
        .amin(-1, keepdim=True)
        .clamp(0.0, MAX_SCALE)
    )
    level_T1 = lines(torch.minimum(lowest_T1, highest_T1)).topk(top_k + 1, dim=-1).values[:, -1:]
    counts_T = ((high_TE >= level_T1 - LINE_SLACK * (1.0 + level_T1.abs())) & ~is_masked_TE).sum(-1)
    return counts_T, high_TE.argsort(-1, descending=True)
