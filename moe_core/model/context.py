"""What a decoder asks of its surroundings: where attention keeps keys and values, and what routers may see.

Shapes: T tokens, E experts, K top_k, N domains, L expert layers, H query heads, G key-value heads, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.routers import Routing
from moe_core.spec import RoutingSpec


class AttentionContext(Protocol):
    """Attends, and keeps keys and values wherever it likes."""

    def attend(self, layer: int, q_THd: Tensor, k_TGd: Tensor, v_TGd: Tensor) -> Tensor:
        """Attention of one layer: (T, H, d) out of rotated queries and keys."""
        ...


class DomainPrior:
    """An additive bias on router logits for each domain, expert layer and expert; -inf masks an expert."""

    def __init__(self, bias_NLE: Tensor, top_k: int) -> None:
        if bias_NLE.ndim != 3:
            raise SpecError(f"a domain prior has 3 axes (domain, expert layer, expert), not {bias_NLE.ndim}")
        if torch.isnan(bias_NLE).any() or (bias_NLE == float("inf")).any():
            raise SpecError("a domain prior holds finite values or -inf; found NaN or +inf")
        allowed = (bias_NLE > float("-inf")).sum(-1)
        if allowed.numel() and int(allowed.min()) < top_k:
            raise SpecError(
                f"a domain prior leaves {int(allowed.min())} experts in a layer; top_k is {top_k}"
            )
        # The last row is "no domain": an index of -1 finds it without a branch or a host sync.
        nothing = bias_NLE.new_zeros(1, *bias_NLE.shape[1:])
        self.table_NLE = torch.cat([bias_NLE, nothing]).float()

    @classmethod
    def from_routing(
        cls, routing: RoutingSpec, *, num_moe_layers: int, num_experts: int, top_k: int
    ) -> DomainPrior:
        """The prior that a routing policy asks for: a push towards mapped experts, or a mask of all others."""
        labels_NE = torch.tensor(routing.label_matrix(num_experts), dtype=torch.float32).view(-1, num_experts)
        if routing.prior_mode == "bias":
            bias_NE = labels_NE * routing.prior_strength
        elif routing.prior_mode == "mask":
            general = torch.zeros(num_experts, dtype=torch.bool)
            general[list(routing.general_experts)] = True
            bias_NE = torch.zeros_like(labels_NE).masked_fill(~(labels_NE.bool() | general), float("-inf"))
        else:
            bias_NE = torch.zeros_like(labels_NE)
        return cls(bias_NE[:, None, :].expand(-1, num_moe_layers, -1).contiguous(), top_k)

    def to(self, device: torch.device | str) -> DomainPrior:
        """Move the table to a device."""
        self.table_NLE = self.table_NLE.to(device)
        return self

    def rows(self, moe_index: int, domain_T: Tensor) -> Tensor:
        """The bias of each token in one expert layer (counted among expert layers): (T, E) fp32."""
        return self.table_NLE[domain_T, moe_index]


@dataclass(slots=True)
class RoutingContext:
    """Everything that the routers may see or tell, besides the hidden state."""

    domain_T: Tensor | None = None
    prior: DomainPrior | None = None
    observe: Callable[[int, Routing], None] | None = None
    # Ids forced on every expert layer, (T, K); weights stay the router's own, renormalised over them.
    forced_TK: Tensor | None = None
    # Added to the score that picks experts, not to their weights: (L, E), for balancing.
    selection_bias_LE: Tensor | None = None

    def bias_for(self, moe_index: int) -> Tensor | None:
        """The prior's bias for one expert layer, or None when there is nothing to add."""
        if self.prior is None or self.domain_T is None:
            return None
        return self.prior.rows(moe_index, self.domain_T)

    def selection_bias_for(self, moe_index: int) -> Tensor | None:
        """The balancing bias of one expert layer, or None."""
        return None if self.selection_bias_LE is None else self.selection_bias_LE[moe_index]
