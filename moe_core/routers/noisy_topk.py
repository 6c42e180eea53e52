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
from moe_core.routers.to_beat import biased_logit_to_beat
from moe_core.spec.gate import NoisyTopk


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
        to_beat_TE = biased_logit_to_beat(noisy_TE, bias_E, top_k)
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
