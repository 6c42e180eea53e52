"""Soft MoE: no choice at all. Every slot is a weighted mean of tokens, every token a weighted mean of slots.

Not for serving token after token: a slot holds something of every token of its sequence, later ones included.
A token that is not finite enters no slot, so that its NaN stays its own.
Shapes: T tokens, D model width, E experts, S slots of all experts, B sequences, P tokens of the longest one, C = B·P
cells, R = B·S rows for the experts.
Source: Puigcerver et al. 2023, "From Sparse to Soft Mixtures of Experts", arXiv 2308.00951.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.checks import check_shapes
from moe_core.routers.choosing import best
from moe_core.routers.logits import NEG_INF, adjusted
from moe_core.routers.routing import Routing, SlotMix
from moe_core.spec.gate import Soft

TINY = 1e-12
# In the place of a temperature of zero.
COLDEST = 1e-3


def soft(gate: Soft, weights: GateWeights, call: GateCall) -> Routing:
    """How slots are mixed from the tokens of a sequence (all tokens are one without `sequence_T`), and back.

    `mix` is what a layer computes with. Ids and weights are there to be looked at: the k experts whose slots give a token
    most, with what they give. The prior moves the logits of all slots of an expert, on the way in and on the way out.
    """
    per_expert = gate.slots_per_expert
    check_shapes(call.hidden_TD, weights["weight"], 1)
    logits_TS = slot_logits(call.hidden_TD, weights["weight"], weights.get("scale"))
    logits_TES = (logits_TS / (call.temperature or COLDEST)).unflatten(-1, (-1, per_expert))
    own_TE = logits_TES.logsumexp(-1)
    logits_TE = adjusted(own_TE, replace(call, temperature=1.0))
    # The slots of an expert move as one.
    logits_TS = (logits_TES + (logits_TE - own_TE)[..., None]).flatten(-2)
    enters_T = own_TE.detach().isfinite().all(-1)
    if call.real_T is not None:
        enters_T = enters_T & call.real_T
    mix = _mixed(logits_TS, call.sequence_T, enters_T, per_expert)
    given_TE = torch.softmax(logits_TE, -1)
    ids_TK = best(logits_TE, call.top_k) if call.forced_TK is None else call.forced_TK
    return Routing(ids_TK, given_TE.gather(-1, ids_TK), logits_TE, given_TE, mix=mix)


def slot_logits(hidden_TD: Tensor, slots_SD: Tensor, scale_1: Tensor | None) -> Tensor:
    """(T, S): products of tokens and slots, of unit length and times the scale where there is one."""
    dtype = torch.promote_types(torch.promote_types(hidden_TD.dtype, slots_SD.dtype), torch.float32)
    x_TD, slots_SD = hidden_TD.to(dtype), slots_SD.to(dtype)
    if scale_1 is None:
        return x_TD @ slots_SD.t()
    # A slot of zeros stays one: its mixture is the plain mean.
    return scale_1 * (_unit(x_TD) @ _unit(slots_SD).t())


def _unit(x_TD: Tensor) -> Tensor:
    return x_TD / x_TD.square().sum(-1, keepdim=True).clamp(min=TINY).sqrt()


def _mixed(logits_TS: Tensor, sequence_T: Tensor | None, enters_T: Tensor, slots_per_expert: int) -> SlotMix:
    """Slots filled from the tokens that enter them, and read by all tokens of their sequence."""
    cell_T, num_sequences, longest = _cells(logits_TS, sequence_T)
    num_slots = logits_TS.shape[1]
    shape = (num_sequences, longest, num_slots)
    mixed_TS = logits_TS.masked_fill(~enters_T[:, None], NEG_INF)
    outside_CS = logits_TS.new_full((num_sequences * longest, num_slots), NEG_INF)
    spread_BSP = outside_CS.index_copy(0, cell_T, mixed_TS).view(shape).transpose(1, 2)
    # A sequence of padding alone, or one that no expert may see, mixes nothing. Taken out before the softmax: one of
    # nothing but -inf is NaN, and so is its gradient behind any mask.
    filled_BS1 = (spread_BSP.detach() > NEG_INF).any(-1, keepdim=True)
    dispatch_BSP = torch.softmax(spread_BSP.masked_fill(~filled_BS1, 0.0), -1) * filled_BS1
    nothing_CS = torch.zeros_like(outside_CS)
    combine_BPS = torch.softmax(nothing_CS.index_copy(0, cell_T, logits_TS), -1).view(shape)
    expert_S = torch.arange(num_slots, device=logits_TS.device) // slots_per_expert
    return SlotMix(dispatch_BSP, combine_BPS, cell_T, enters_T, expert_S.repeat(num_sequences)[:, None])


def _cells(logits_TS: Tensor, sequence_T: Tensor | None) -> tuple[Tensor, int, int]:
    """Where each token stands when sequences are laid below each other, (T,); how many there are; the longest."""
    num_tokens = logits_TS.shape[0]
    every_T = torch.arange(num_tokens, device=logits_TS.device)
    if not num_tokens or sequence_T is None:
        return every_T, min(1, num_tokens), num_tokens
    names, row_T, count_B = torch.unique(sequence_T, return_inverse=True, return_counts=True)
    order_T = torch.argsort(row_T, stable=True)
    place_T = torch.empty_like(order_T)
    place_T[order_T] = every_T - (count_B.cumsum(0) - count_B)[row_T[order_T]]
    longest = int(count_B.max())
    return row_T * longest + place_T, len(names), longest
