"""Learnt noise on the logits while training, so that experts near the edge are tried.

Shapes: T tokens, D model width, E experts, K top_k.
Source: Shazeer et al. 2017, "Outrageously Large Neural Networks", arXiv 1701.06538, section 2.1 and appendix A.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.logits import NEG_INF, floor_shift, linear_logits
from moe_core.routers.losses import squared_variation
from moe_core.routers.routing import Routing
from moe_core.routers.softmax_topk import softmax_choice
from moe_core.spec.gate import NoisyTopk

# Of the rivals with a bias: tokens at once, the greatest scale of the others' shares, and what rounding may hide.
ROWS_AT_ONCE = 128
MAX_SCALE = 1e300
LINE_SLACK = 1e-12


def noisy_topk(gate: NoisyTopk, weights: GateWeights, call: GateCall) -> Routing:
    """The k best of logits + normal noise · (softplus(x · W_noise) + floor); without noise when serving.

    While training `losses["load"]` is the squared variation of the smooth load: the sum over tokens of the probability
    that an expert would be among the k best if its noise alone were drawn again, selection bias included.
    """
    if not (call.training and call.rng is not None):
        return softmax_choice(linear_logits(weights, call), call, renormalised=call.norm_topk_prob)
    clean_TE = linear_logits(weights, replace(call, floor=None))
    raw_TE = torch.nn.functional.linear(call.hidden_TD.float(), weights["noise_weight"].float())
    spread_TE = torch.nn.functional.softplus(raw_TE) + gate.noise_floor
    drawn_TE = torch.randn(clean_TE.shape, generator=call.rng, device=clean_TE.device)
    noisy_TE = clean_TE + drawn_TE * spread_TE
    if call.floor is not None:
        # Of what chooses: noise would take away from a floor under it.
        shift_TE = floor_shift(noisy_TE, call.floor)
        clean_TE, noisy_TE = clean_TE + shift_TE, noisy_TE + shift_TE
    routing = softmax_choice(noisy_TE, call, renormalised=call.norm_topk_prob)
    chances_TE = chance_of_choice(clean_TE, noisy_TE, spread_TE, call.top_k, call.selection_bias_E)
    # A NaN stays in its own token, and out of the load of the others.
    counted_T = chances_TE.detach().isfinite().all(-1)
    chances_TE = chances_TE[counted_T if call.real_T is None else counted_T & call.real_T]
    load = squared_variation(chances_TE.sum(0)) if chances_TE.shape[0] else clean_TE.new_zeros(())
    return Routing(
        routing.expert_ids_TK, routing.weights_TK, noisy_TE, routing.probs_TE, losses={"load": load}
    )


def chance_of_choice(
    clean_TE: Tensor, noisy_TE: Tensor, spread_TE: Tensor, top_k: int, bias_E: Tensor | None = None
) -> Tensor:
    """(T, E): the probability that each expert is among the k best, its own noise drawn anew, the others' kept.

    All float32; `bias_E` is what is added to the softmax of the noisy logits where these choose.
    """
    num_experts = noisy_TE.shape[1]
    if top_k >= num_experts:
        return torch.ones_like(clean_TE)
    if bias_E is None:
        to_beat_TE = _logit_to_beat(noisy_TE, top_k)
    else:
        to_beat_TE = _biased_logit_to_beat(noisy_TE.double(), bias_E.detach().double(), top_k).float()
    # Masked experts, and those that are chosen or left out whatever is drawn, are taken out before the quotient: one that is
    # infinite has a gradient of NaN behind any mask.
    masked_TE, always_TE, never_TE = clean_TE == NEG_INF, to_beat_TE == NEG_INF, to_beat_TE == -NEG_INF
    certain_TE = masked_TE | always_TE | never_TE
    lead_TE = clean_TE.masked_fill(certain_TE, 0.0) - to_beat_TE.masked_fill(certain_TE, 0.0)
    chances_TE = torch.special.ndtr(lead_TE / spread_TE)
    return chances_TE.masked_fill(always_TE, 1.0).masked_fill(masked_TE | never_TE, 0.0)


def _logit_to_beat(noisy_TE: Tensor, top_k: int) -> Tensor:
    """(T, E): above which logit an expert is among the k best; -inf where it is in any case."""
    # What there is to beat moves with the others' logits and noise, and takes its part of the gradient.
    best_TK = noisy_TE.topk(top_k + 1, dim=-1).values
    # To be chosen, an expert that is in must beat the (k+1)-th, one that is out the k-th of the others.
    is_in_TE = noisy_TE > best_TK[:, top_k:]
    return torch.where(is_in_TE, best_TK[:, top_k:], best_TK[:, top_k - 1 : top_k])


def _biased_logit_to_beat(noisy_TE: Tensor, bias_E: Tensor, top_k: int) -> Tensor:
    """(T, E) float64: the same where a bias is added to the softmax; infinite where no logit makes a difference.

    With s the share of an expert, b its bias, and p the share of another one among all but the first, b' its bias: the first
    comes before the other where s + b > (1 - s)·p + b', that is log(s / (1 - s)) > log(p + b' - b) - log(1 + b - b').
    """
    rest_TE = _logsumexp_of_others(noisy_TE)
    rival_TE, unrivalled_TE = _rivals(noisy_TE.detach(), rest_TE.detach(), bias_E, top_k)
    behind_TE = bias_E[rival_TE] - bias_E
    log_share_TE = noisy_TE.gather(-1, rival_TE) - rest_TE
    level_TE = log_share_TE.detach().exp() + behind_TE
    always_TE = unrivalled_TE | ((level_TE <= 0.0) & (behind_TE != 0.0))
    never_TE = ~always_TE & (behind_TE >= 1.0)
    certain_TE = always_TE | never_TE
    log_share_TE = log_share_TE.masked_fill(certain_TE, 0.0)
    # A share that underflows is still one that can be beaten.
    alike_TE = certain_TE | (behind_TE == 0.0)
    raised_TE = (log_share_TE.exp() + behind_TE).masked_fill(alike_TE, 1.0).log()
    ahead_TE = torch.where(alike_TE, log_share_TE, raised_TE)
    logit_TE = rest_TE.masked_fill(certain_TE, 0.0) + ahead_TE
    logit_TE = logit_TE - torch.log1p(-behind_TE.masked_fill(certain_TE, 0.0))
    return logit_TE.masked_fill(always_TE, NEG_INF).masked_fill(never_TE, -NEG_INF)


def _logsumexp_of_others(logits_TE: Tensor) -> Tensor:
    """(T, E): the logsumexp of all logits but one's own."""
    best_T1 = logits_TE.detach().argmax(-1, keepdim=True)
    is_best_TE = torch.zeros_like(logits_TE, dtype=torch.bool).scatter(-1, best_T1, True)
    all_T1 = logits_TE.logsumexp(-1, keepdim=True)
    # No share but the largest can be so near one that nothing is left of the rest.
    shares_TE = torch.softmax(logits_TE, -1).masked_fill(is_best_TE, 0.0)
    others_TE = logits_TE.masked_fill(is_best_TE, NEG_INF)
    alone_T1 = (others_TE == NEG_INF).all(-1, keepdim=True)
    beside_T1 = others_TE.masked_fill(alone_T1, 0.0).logsumexp(-1, keepdim=True)
    beside_T1 = beside_T1.masked_fill(alone_T1, NEG_INF)
    return torch.where(is_best_TE, beside_T1, all_T1 + torch.log1p(-shares_TE))


def _rivals(noisy_TE: Tensor, rest_TE: Tensor, bias_E: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
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

    When an expert's own share moves, the others' are scaled alike, from p to c·p: c·p + b are lines that rise with c. Any
    k + 1 of them bound each expert's c from above, and the k-th line at the greatest c bounds them from below.
    """
    log_all_T1 = noisy_TE.logsumexp(-1, keepdim=True)
    share_TE, is_masked_TE = (noisy_TE - log_all_T1).exp(), noisy_TE == NEG_INF
    scale_TE = (log_all_T1 - rest_TE).exp().clamp(max=MAX_SCALE)

    def lines(c_T1: Tensor | float) -> Tensor:
        return (c_T1 * share_TE + bias_E).masked_fill(is_masked_TE, NEG_INF)

    first_TK = lines(1.0).topk(top_k + 1, dim=-1).indices
    is_in_TE = torch.zeros_like(is_masked_TE).scatter(-1, first_TK[:, :top_k], True)
    rival_TE = torch.where(is_in_TE, first_TK[:, top_k:], first_TK[:, top_k - 1 : top_k])
    beside_TE = (noisy_TE.gather(-1, rival_TE) - rest_TE).exp()
    # What an expert leaves to the others when it just beats this rival.
    left_TE = ((1.0 - bias_E[rival_TE] + bias_E) / (1.0 + beside_TE)).clamp(0.0, 1.0)
    highest_T1 = (left_TE * scale_TE).amax(-1, keepdim=True)
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
