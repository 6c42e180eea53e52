"""A router's decision for a batch of tokens.

T tokens, E experts, K places of a token (top_k, or the most that a gate may choose), R slots, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

# In the place of an expert's number: the place is empty, its weight is zero.
NO_EXPERT = -1


@dataclass(slots=True, frozen=True)
class Overflow:
    """What became of every choice where experts have a capacity; kept + rerouted + dropped = all choices."""

    # (T, K) bool; a choice is in exactly one of them, an empty place in none.
    kept_TK: Tensor
    rerouted_TK: Tensor
    dropped_TK: Tensor
    # (T, K): the choice before any expert was full.
    wanted_TK: Tensor
    # (T,) float32: weight that passes the token's own hidden state through; None where the policy passes none.
    passed_T: Tensor | None = None


@dataclass(slots=True, frozen=True)
class SlotMix:
    """Soft MoE: experts see mixtures of tokens instead of tokens."""

    # (R, T) float32, each row sums to one: what a slot is made of.
    dispatch_RT: Tensor
    # (T, R) float32, each row sums to one: what a token gets back.
    combine_TR: Tensor
    # (R, 1) int64: the expert of each slot.
    expert_R1: Tensor

    def routing(self) -> Routing:
        """The slots as tokens that each go to their own expert."""
        ones_R1 = torch.ones(self.expert_R1.shape, dtype=torch.float32, device=self.expert_R1.device)
        return Routing(self.expert_R1, ones_R1, ones_R1, ones_R1)


@dataclass(slots=True, frozen=True)
class Routing:
    """Which experts each token goes to, with what weight, and the scores behind the choice."""

    # (T, K) int64, best first, no expert twice; NO_EXPERT in empty places, which come last unless an expert was full.
    expert_ids_TK: Tensor
    # (T, K) float32, the factor on each expert's output; zero in empty places.
    weights_TK: Tensor
    # (T, E) float32, what the gate's score function saw: after temperature and prior.
    logits_TE: Tensor
    # (T, E) float32, shares of all experts that sum to one: the softmax, or what the gate has in its stead.
    probs_TE: Tensor
    mix: SlotMix | None = None
    overflow: Overflow | None = None
    # Auxiliary losses that only the gate itself can compute, with their gradients; unweighted.
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    # What the gate found out on the way, without gradients.
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def chosen_TK(self) -> Tensor:
        """(T, K) bool: the places that hold an expert."""
        return self.expert_ids_TK >= 0

    @property
    def wanted_TK(self) -> Tensor:
        """(T, K): the gate's own choice, as it would be if no expert were ever full; what balance is judged by."""
        return self.expert_ids_TK if self.overflow is None else self.overflow.wanted_TK

    def detached(self) -> Routing:
        """The same decision, holding on to no activations."""
        return replace(
            self,
            weights_TK=self.weights_TK.detach(),
            logits_TE=self.logits_TE.detach(),
            probs_TE=self.probs_TE.detach(),
            mix=None,
            overflow=None if self.overflow is None else replace(self.overflow, passed_T=None),
            losses={name: loss.detach() for name, loss in self.losses.items()},
        )


def load_of(routing: Routing, real_T: Tensor | None = None) -> Tensor:
    """(E,) int64: how many choices fell on each expert, before any was full; empty places do not count.

    Nor does padding, where `real_T` is False.
    """
    ids_TK = routing.wanted_TK if real_T is None else routing.wanted_TK[real_T]
    return torch.bincount(ids_TK[ids_TK >= 0], minlength=routing.probs_TE.shape[1])
