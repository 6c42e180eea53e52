"""Which logit an expert must have to be among the k best where a bias is added to the softmax of the logits.

With s the share of an expert, b its bias, and p the share of another one among all but the first, b' its bias: the first
comes before the other where s + b > (1 - s)·p + b', that is log(s / (1 - s)) > log(p + b' - b) - log(1 + b - b').
In weights exp(logit), w' of the other and r of all but the first: logit > log((w' + (b' - b)·r) / (1 + b - b')).

Shapes: T tokens, t of them at once, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_core.routers.logits import NEG_INF
from moe_core.routers.rivals import rivals
from moe_core.routers.shares import Shares

# No more than fit into a cache.
ROWS_AT_ONCE = 512
TINY = 1e-300


def biased_logit_to_beat(noisy_TE: Tensor, bias_E: Tensor, top_k: int) -> Tensor:
    """(T, E), of the dtype of `noisy_TE`: above which logit an expert is among the k best of softmax(noisy) + bias.

    -inf where it is in any case, inf where no logit lets it in. The gradient is that of the others' logits; `bias_E` has
    none. Floating point on any device; computed in float64. top_k is below E.
    """
    to_beat_TE: Tensor = _LogitToBeat.apply(noisy_TE, bias_E.detach().double(), top_k)  # type: ignore[no-untyped-call]
    return to_beat_TE


class _LogitToBeat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, noisy_TE: Tensor, bias_E: Tensor, top_k: int) -> Tensor:
        to_beat_TE = torch.empty_like(noisy_TE)
        kept = []
        for rows in _slices(noisy_TE.shape[0]):
            shares = Shares.of(noisy_TE[rows].double())
            to_beat_TE[rows], *of_rows = _to_beat(shares, bias_E, top_k)
            kept.append((shares.best_t1, shares.beside_tE, shares.beside_t1, shares.scale_t1, *of_rows))
        ctx.save_for_backward(*(tensor for of_rows in kept for tensor in of_rows))
        return to_beat_TE

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor, None, None]:
        kept = iter(ctx.saved_tensors)
        out_TE = torch.empty_like(grad_TE)
        for rows in _slices(grad_TE.shape[0]):
            out_TE[rows] = _gradient(grad_TE[rows].double(), *(next(kept) for _ in range(6)))
        return out_TE, None, None


def _slices(num_rows: int) -> list[slice]:
    return [slice(start, start + ROWS_AT_ONCE) for start in range(0, num_rows, ROWS_AT_ONCE)]


def _to_beat(shares: Shares, bias_E: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(t, E): the logit to beat, the rival that it goes by, and its part of the gradient."""
    weights_tE = shares.weights_tE()
    rest_tE = shares.rest_tE(weights_tE)
    rival_tE, unrivalled_tE = rivals(shares, weights_tE, rest_tE, bias_E, top_k)
    behind_tE = bias_E[rival_tE] - bias_E
    rival_weight_tE = weights_tE.gather(-1, rival_tE)
    level_tE = rival_weight_tE + behind_tE * rest_tE
    part_tE = rival_weight_tE / level_tE
    logit_tE = shares.largest_t1 + (level_tE / (1.0 - behind_tE)).log()
    # Beside the best one the others' weights may be nothing in its units.
    best_t1 = shares.best_t1
    beside_t1 = shares.beside_tE.gather(-1, rival_tE.gather(-1, best_t1))
    level_t1 = beside_t1 + behind_tE.gather(-1, best_t1) * shares.beside_t1
    logit_t1 = shares.second_t1 + (level_t1 / (1.0 - behind_tE.gather(-1, best_t1))).log()
    logit_tE.scatter_(-1, best_t1, logit_t1)
    part_tE.scatter_(-1, best_t1, beside_t1 / level_t1)
    level_tE.scatter_(-1, best_t1, level_t1)
    if bool((rival_weight_tE == 0.0).any()):
        # A share that underflows is still one that can be beaten.
        alike_tE = behind_tE == 0.0
        logit_tE = torch.where(alike_tE, shares.logits_tE.gather(-1, rival_tE), logit_tE)
        level_tE, part_tE = level_tE.masked_fill(alike_tE, 1.0), part_tE.masked_fill(alike_tE, 1.0)
    always_tE = (level_tE <= 0.0) | unrivalled_tE
    never_tE = ~always_tE & (behind_tE >= 1.0)
    certain_tE = always_tE | never_tE
    if bool(certain_tE.any()):
        logit_tE = logit_tE.masked_fill(always_tE, NEG_INF).masked_fill(never_tE, -NEG_INF)
        part_tE = part_tE.masked_fill(certain_tE, 1.0)
    return logit_tE, rival_tE, part_tE


def _gradient(
    grad_tE: Tensor,
    best_t1: Tensor,
    beside_tE: Tensor,
    beside_t1: Tensor,
    scale_t1: Tensor,
    rival_tE: Tensor,
    part_tE: Tensor,
) -> Tensor:
    """(t, E): the gradient of the logits: a part of the rival's, the rest of all but the expert, by their shares."""
    to_rival_tE = grad_tE * part_tE
    to_all_tE = grad_tE - to_rival_tE
    total_t1 = beside_t1 * scale_t1 + 1.0
    share_tE = beside_tE * (scale_t1 / total_t1)
    of_best_t1 = to_all_tE.gather(-1, best_t1)
    # No share but the best one is near 1.
    over_left_tE = (to_all_tE / (1.0 - share_tE)).scatter_(-1, best_t1, 0.0)
    sum_t1 = over_left_tE.sum(-1, keepdim=True)
    out_tE = share_tE * (sum_t1 - over_left_tE) + beside_tE * (of_best_t1 / beside_t1.clamp(min=TINY))
    out_tE.scatter_(-1, best_t1, sum_t1 / total_t1)
    return out_tE.scatter_add_(-1, rival_tE, to_rival_tE)
