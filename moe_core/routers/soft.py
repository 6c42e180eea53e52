"""Soft MoE: no choice at all. Every slot is a weighted mean of tokens, every token a weighted mean of slots.

Not for serving token after token: a slot holds something of every token of its sequence, later ones included.
Shapes: T tokens, D model width, E experts, S slots of all experts, B sequences, R = B·S rows for the experts.
Source: Puigcerver et al. 2023, "From Sparse to Soft Mixtures of Experts", arXiv 2308.00951.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.choosing import best
from moe_core.routers.logits import NEG_INF, adjusted, check_shapes
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
    num_slots = weights["weight"].shape[0]
    per_expert = gate.slots_per_expert
    check_shapes(call.hidden_TD, weights["weight"], 1)
    logits_TS = slot_logits(call.hidden_TD, weights["weight"], weights.get("scale"))
    logits_TES = (logits_TS / (call.temperature or COLDEST)).unflatten(-1, (-1, per_expert))
    own_TE = logits_TES.logsumexp(-1)
    logits_TE = adjusted(own_TE, replace(call, temperature=1.0))
    # The slots of an expert move as one.
    logits_TS = (logits_TES + (logits_TE - own_TE)[..., None]).flatten(-2)
    sequence_T = (
        torch.zeros_like(logits_TS[:, 0], dtype=torch.long) if call.sequence_T is None else call.sequence_T
    )
    dispatch_RT, combine_TR = _mixes(logits_TS, sequence_T, call.real_T)
    num_sequences = dispatch_RT.shape[0] // max(1, num_slots)
    expert_S = torch.arange(num_slots, device=logits_TS.device) // per_expert
    mix = SlotMix(dispatch_RT, combine_TR, expert_S.repeat(num_sequences)[:, None])
    given_TE = torch.softmax(logits_TE, -1)
    ids_TK = best(logits_TE, call.top_k) if call.forced_TK is None else call.forced_TK
    return Routing(ids_TK, given_TE.gather(-1, ids_TK), logits_TE, given_TE, mix=mix)


def slot_logits(hidden_TD: Tensor, slots_SD: Tensor, scale_1: Tensor | None) -> Tensor:
    """(T, S): products of tokens and slots, of unit length and times the scale where there is one."""
    x_TD = hidden_TD.to(torch.promote_types(hidden_TD.dtype, torch.float32))
    if scale_1 is None:
        return x_TD @ slots_SD.t()
    # A slot of zeros stays one: its mixture is the plain mean.
    return scale_1 * (_unit(x_TD) @ _unit(slots_SD).t())


def _unit(x_TD: Tensor) -> Tensor:
    return x_TD / x_TD.square().sum(-1, keepdim=True).clamp(min=TINY).sqrt()


def _mixes(logits_TS: Tensor, sequence_T: Tensor, real_T: Tensor | None) -> tuple[Tensor, Tensor]:
    """Dispatch (R, T) and combine (T, R) with zeros between tokens and slots of different sequences."""
    names, place_T = torch.unique(sequence_T, return_inverse=True)
    own_BT = place_T[None, :] == torch.arange(len(names), device=place_T.device)[:, None]
    mixed_BT = own_BT if real_T is None else own_BT & real_T
    spread_BST = logits_TS.t()[None].masked_fill(~mixed_BT[:, None, :], NEG_INF)
    # A sequence of padding alone, or one that no expert may see, mixes nothing.
    dispatch_BST = torch.softmax(spread_BST, -1).masked_fill(
        ~(spread_BST > NEG_INF).any(-1, keepdim=True), 0.0
    )
    combine_TS = torch.softmax(logits_TS, -1)
    combine_TBS = combine_TS[:, None, :] * own_BT.t()[..., None]
    return dispatch_BST.flatten(0, 1), combine_TBS.flatten(1)
