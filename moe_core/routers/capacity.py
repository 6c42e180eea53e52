"""Experts that are full: who goes first, and what becomes of the choices beyond.

Every choice ends in exactly one of three sets: kept + rerouted + dropped = all choices, and no expert takes more than its
capacity. Choices whose weight is NaN are dropped.

Shapes: T tokens, E experts, K places.
Source: Lepikhin et al. 2020, "GShard" (capacity by position, firsts before seconds); Fedus et al. 2021, "Switch" (the
residual passes); Riquelme et al. 2021, "V-MoE" (priority by weight). Next-best and learnt overflow have no known source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_core.routers.call import GateCall, GateWeights
from moe_core.routers.logits import NEG_INF
from moe_core.routers.routing import NO_EXPERT, Overflow, Routing
from moe_core.routers.scores import choosing_scores
from moe_core.spec.capacity import CapacitySpec
from moe_core.spec.gate import Gate, Hash


def within_capacity(
    routing: Routing, capacity: CapacitySpec, weights: GateWeights, call: GateCall, gate: Gate
) -> Routing:
    """The decision with no expert beyond its capacity; padding takes no place and gets no expert.

    Nor does a choice whose weight is NaN take one that a number may want: it is dropped.
    Weights of kept choices stay as they are. A rerouted choice takes its weight along, so that a token's weights sum to
    what they did. Unlimited where the specification has no factor, and for forced ids.
    """
    ids_TK = routing.expert_ids_TK
    num_tokens = ids_TK.shape[0] if call.real_T is None else int(call.real_T.sum())
    num_experts = routing.probs_TE.shape[1]
    limit = capacity.tokens_an_expert(num_tokens, num_experts, call.top_k, training=call.training)
    if limit is None or call.forced_TK is not None or routing.mix is not None:
        return routing
    if call.real_T is not None:
        ids_TK = ids_TK.masked_fill(~call.real_T[:, None], NO_EXPERT)
    sound_TK = ~routing.weights_TK.detach().isnan()
    queue_R = _queue(ids_TK.where(sound_TK, NO_EXPERT), routing.weights_TK, capacity)
    kept_TK = _first_in_line(ids_TK, queue_R, num_experts, limit)
    over_TK = (ids_TK >= 0) & ~kept_TK
    door = _Door(ids_TK.masked_fill(over_TK, NO_EXPERT), queue_R, limit)
    weights_TK = routing.weights_TK
    if capacity.overflow in ("next_best", "learned"):
        learns = capacity.overflow == "learned"
        scores_TE = _rescored(routing, weights, call) if learns else _order(gate, routing)
        door.reroute(over_TK & sound_TK, scores_TE.detach())
        if learns:
            weights_TK = _straight_through(weights_TK, scores_TE, door.ids_TK, over_TK)
    rerouted_TK = over_TK & (door.ids_TK >= 0)
    dropped_TK = over_TK & ~rerouted_TK
    passed_T = (weights_TK * dropped_TK).sum(-1) if capacity.overflow == "residual" else None
    return replace(
        routing,
        expert_ids_TK=door.ids_TK,
        weights_TK=torch.where(door.ids_TK >= 0, weights_TK, 0.0),
        overflow=Overflow(kept_TK, rerouted_TK, dropped_TK, ids_TK, routing.weights_TK, passed_T),
    )


def _queue(ids_TK: Tensor, weights_TK: Tensor, capacity: CapacitySpec) -> Tensor:
    """(R,) places in the flattened (K, T) table of filled choices, in the order in which they are served."""
    by_rank_R = torch.nonzero(ids_TK.t().reshape(-1) >= 0)[:, 0]
    if capacity.priority == "position":
        return by_rank_R
    weights_R = weights_TK.detach().t().reshape(-1)[by_rank_R]
    return by_rank_R[torch.sort(weights_R, descending=True, stable=True).indices]


def _first_in_line(ids_TK: Tensor, queue_R: Tensor, num_experts: int, limit: int) -> Tensor:
    """(T, K) bool: the choices among the first `limit` of their expert's line."""
    kept = torch.zeros(ids_TK.numel(), dtype=torch.bool, device=ids_TK.device)
    kept[queue_R] = _place_in_line(ids_TK.t().reshape(-1)[queue_R], num_experts) < limit
    return kept.view(ids_TK.shape[1], ids_TK.shape[0]).t()


def _place_in_line(expert_R: Tensor, num_experts: int) -> Tensor:
    """(R,) how many before each row, in the order given, want the same expert."""
    order_R = torch.argsort(expert_R, stable=True)
    counts_E = torch.bincount(expert_R, minlength=num_experts)
    starts_E = counts_E.cumsum(0) - counts_E
    place_R = torch.empty_like(expert_R)
    place_R[order_R] = torch.arange(expert_R.shape[0], device=expert_R.device) - starts_E[expert_R[order_R]]
    return place_R


@dataclass(slots=True)
class _Door:
    """Sends choices that found no place to the best expert that has one."""

    # (T, K), the choices that have a place; changed as others find one.
    ids_TK: Tensor
    queue_R: Tensor
    limit: int

    def reroute(self, over_TK: Tensor, scores_TE: Tensor) -> None:
        """One choice a token at a time, firsts before seconds; in rounds, for two may want the last place."""
        num_experts = scores_TE.shape[1]
        # Sorted once: whose turn it is does not change.
        turn = torch.empty(over_TK.numel(), dtype=torch.int64, device=over_TK.device)
        turn[self.queue_R] = torch.arange(self.queue_R.shape[0], device=over_TK.device)
        turn_TK = turn.view(over_TK.shape[1], over_TK.shape[0]).t()
        for place in range(over_TK.shape[1]):
            waiting_R = torch.nonzero(over_TK[:, place])[:, 0]
            waiting_R = waiting_R[turn_TK[waiting_R, place].argsort()]
            for _ in range(num_experts):
                if not waiting_R.shape[0]:
                    break
                waiting_R = self._round(waiting_R, place, scores_TE)

    def _round(self, waiting_R: Tensor, place: int, scores_TE: Tensor) -> Tensor:
        """Each waiting token asks its best expert with room; those who were first get in, the others are given back."""
        room_E = self.limit - torch.bincount(self.ids_TK[self.ids_TK >= 0], minlength=scores_TE.shape[1])
        num_experts = scores_TE.shape[1]
        every_E = torch.arange(num_experts, device=scores_TE.device)
        has_RE = (self.ids_TK[waiting_R][:, :, None] == every_E).any(1)
        asks_RE = scores_TE[waiting_R].masked_fill(has_RE | (room_E <= 0), NEG_INF)
        best_R = asks_RE.argmax(-1)
        possible_R = asks_RE.gather(1, best_R[:, None])[:, 0] > NEG_INF
        waiting_R, best_R = waiting_R[possible_R], best_R[possible_R]
        enters_R = _place_in_line(best_R, num_experts) < room_E[best_R]
        self.ids_TK[waiting_R[enters_R], place] = best_R[enters_R]
        return waiting_R[~enters_R]


def _order(gate: Gate, routing: Routing) -> Tensor:
    """What the gate orders experts by, out of which groups it did not choose stay; a table orders none but its own."""
    if routing.evened_TE is not None:
        return routing.evened_TE
    return routing.logits_TE if isinstance(gate, Hash) else choosing_scores(gate, routing)


def _rescored(routing: Routing, weights: GateWeights, call: GateCall) -> Tensor:
    """The logits with the learnt correction for tokens that were turned away."""
    head_ED = weights["overflow_weight"].float()
    return routing.logits_TE + torch.nn.functional.linear(call.hidden_TD.float(), head_ED)


def _straight_through(weights_TK: Tensor, scores_TE: Tensor, ids_TK: Tensor, over_TK: Tensor) -> Tensor:
    """The same weights; those of rerouted choices with a gradient by which the correction learns where to send them."""
    probs_TK = torch.softmax(scores_TE, -1).gather(-1, ids_TK.clamp(min=0))
    factor_TK = 1.0 + (probs_TK - probs_TK.detach())
    return torch.where(over_TK & (ids_TK >= 0), weights_TK * factor_TK, weights_TK)
