"""A router's decision for a batch of tokens.

T tokens, E experts, K places of a token (top_k, or the most that a gate may choose), R slots, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from moe_core.routers.full_precision import in_full_precision

# In the place of an expert's number: the place is empty, its weight is zero.
NO_EXPERT = -1


@dataclass(slots=True, frozen=True)
class Overflow:
    """What became of every choice where experts have a capacity; kept + rerouted + dropped = all choices."""

    # (T, K) bool; a choice is in exactly one of them, an empty place in none.
    kept_TK: Tensor
    rerouted_TK: Tensor
    dropped_TK: Tensor
    # (T, K): the choice before any expert was full, and the gate's own weights of it, with their gradients.
    wanted_TK: Tensor
    wanted_weights_TK: Tensor
    # (T,) float32: weight that passes the token's own hidden state through; None where the policy passes none.
    passed_T: Tensor | None = None


@dataclass(slots=True, frozen=True)
class SlotMix:
    """Soft MoE: experts see mixtures of tokens instead of tokens. Kept sequence by sequence: none sees another's tokens.

    B sequences, S slots of all experts, P tokens of the longest sequence, R = B · S.
    """

    # (B, S, P) float32, each row sums to one, or to zero where no token enters the slot: what a slot is made of.
    dispatch_BSP: Tensor
    # (B, P, S) float32, each row sums to one: what a token gets back. Rows beyond a sequence's end mean nothing.
    combine_BPS: Tensor
    # (T,) int64: the cell of each token in the flattened (B, P).
    cell_T: Tensor
    # (T,) bool: False for tokens that are in no slot: padding, and what is not finite.
    enters_T: Tensor
    # (R, 1) int64: the expert of each slot.
    expert_R1: Tensor

    def routing(self) -> Routing:
        """The slots as tokens that each go to their own expert."""
        ones_R1 = torch.ones(self.expert_R1.shape, dtype=torch.float32, device=self.expert_R1.device)
        return Routing(self.expert_R1, ones_R1, ones_R1, ones_R1)

    def slots_of(self, hidden_TD: Tensor) -> Tensor:
        """(R, D) float32 or wider: the mixtures that the experts see of (T, D) hidden states, any floating dtype."""
        x_TD = hidden_TD.to(self.dispatch_BSP.dtype)
        # A weight of zero does not keep a NaN out.
        x_TD = torch.where(self.enters_T[:, None], x_TD, 0.0)
        num_sequences, _, longest = self.dispatch_BSP.shape
        cells_CD = x_TD.new_zeros(num_sequences * longest, x_TD.shape[1]).index_copy(0, self.cell_T, x_TD)
        with in_full_precision(x_TD.device):
            return (self.dispatch_BSP @ cells_CD.view(num_sequences, longest, -1)).flatten(0, 1)

    def tokens_of(self, out_RD: Tensor) -> Tensor:
        """(T, D) float32 or wider: what every token gets of the slots' outputs (R, D)."""
        out_BSD = out_RD.to(self.combine_BPS.dtype).view(*self.dispatch_BSP.shape[:2], -1)
        with in_full_precision(out_RD.device):
            return (self.combine_BPS @ out_BSD).flatten(0, 1)[self.cell_T]

    @property
    def dispatch_RT(self) -> Tensor:
        """(R, T): the same as one matrix, zero between sequences. To look at: it grows with the square of the batch."""
        return _block_diagonal(self.dispatch_BSP).flatten(0, 1).flatten(1)[:, self.cell_T]

    @property
    def combine_TR(self) -> Tensor:
        """(T, R): the same as one matrix, zero between sequences. To look at."""
        return _block_diagonal(self.combine_BPS).flatten(0, 1).flatten(1)[self.cell_T]


def _block_diagonal(blocks_BXY: Tensor) -> Tensor:
    """(B, X, B, Y): each block between its own row and column of blocks."""
    size = blocks_BXY.shape[0]
    own_BB = torch.eye(size, dtype=torch.bool, device=blocks_BXY.device)
    return torch.where(own_BB[:, None, :, None], blocks_BXY[:, :, None, :], 0.0)


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
    # (E,): what was added to the scores that chose, stored with the gate and given in the call together; None for nothing.
    selection_bias_E: Tensor | None = None
    # (T, S): the logsumexp of each softmax that a gate takes of a token; None for one, of the logits.
    levels_TS: Tensor | None = None
    # (T, E) float64: the scores that chose where a gate evens loads while training; None where it chooses as when serving.
    evened_TE: Tensor | None = None

    @property
    def normalisers_TS(self) -> Tensor:
        """(T, S) float32: the logsumexp of every softmax that the gate takes of a token; what a z loss keeps small."""
        return self.logits_TE.logsumexp(-1, keepdim=True) if self.levels_TS is None else self.levels_TS

    @property
    def chosen_TK(self) -> Tensor:
        """(T, K) bool: the places that hold an expert."""
        return self.expert_ids_TK >= 0

    @property
    def wanted_TK(self) -> Tensor:
        """(T, K): the gate's own choice, as it would be if no expert were ever full; what balance is judged by."""
        return self.expert_ids_TK if self.overflow is None else self.overflow.wanted_TK

    @property
    def wanted_weights_TK(self) -> Tensor:
        """(T, K) float32: the gate's weights of `wanted_TK`; zero in empty places."""
        return self.weights_TK if self.overflow is None else self.overflow.wanted_weights_TK

    def detached(self) -> Routing:
        """The same decision, holding on to no activations."""
        overflow = self.overflow
        if overflow is not None:
            weights_TK = overflow.wanted_weights_TK.detach()
            overflow = replace(overflow, wanted_weights_TK=weights_TK, passed_T=None)
        return replace(
            self,
            weights_TK=self.weights_TK.detach(),
            logits_TE=self.logits_TE.detach(),
            probs_TE=self.probs_TE.detach(),
            mix=None,
            overflow=overflow,
            evened_TE=None,
            losses={name: loss.detach() for name, loss in self.losses.items()},
            levels_TS=None if self.levels_TS is None else self.levels_TS.detach(),
        )


def load_of(routing: Routing, real_T: Tensor | None = None) -> Tensor:
    """(E,) int64: how many choices fell on each expert, before any was full; empty places do not count.

    Nor does padding, where `real_T` is False.
    """
    ids_TK = routing.wanted_TK if real_T is None else routing.wanted_TK[real_T]
    return torch.bincount(ids_TK[ids_TK >= 0], minlength=routing.probs_TE.shape[1])
