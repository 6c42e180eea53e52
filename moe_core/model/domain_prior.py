"""What the domain of a request does to the routers: a push, a mask or a floor, for each domain and expert layer.

Shapes: T tokens, E experts, N domains, L expert layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.routers import Floor
from moe_core.spec import RoutingSpec
from moe_core.spec.routing import LayerPrior
from moe_core.spec.twins import TwinsSpec

NEG_INF = float("-inf")


class DomainPrior:
    """An additive bias on router logits for each domain, expert layer and expert; -inf masks an expert.

    Beside it, where a domain has one, the least share (`floor_NL`) of the probability that its experts (`mine_NE`) get
    together. Each token of a batch may have a domain of its own; -1 is no domain.
    """

    def __init__(
        self,
        bias_NLE: Tensor,
        top_k: int,
        *,
        floor_NL: Tensor | None = None,
        mine_NE: Tensor | None = None,
        twins: TwinsSpec | None = None,
    ) -> None:
        _check_bias(bias_NLE, top_k, twins)
        # The last row is "no domain": an index of -1 finds it without a branch or a host sync.
        nothing = bias_NLE.new_zeros(1, *bias_NLE.shape[1:])
        self.table_NLE = torch.cat([bias_NLE, nothing]).float()
        self.has_bias = bool((self.table_NLE != 0.0).any()) or floor_NL is None
        self.floor_NL: Tensor | None = None
        if floor_NL is None or mine_NE is None:
            return
        if not bool(((floor_NL >= 0.0) & (floor_NL < 1.0)).all()):
            raise SpecError("the floor of a domain prior is a share from 0 to less than 1")
        self.floor_NL = torch.cat([floor_NL, floor_NL.new_zeros(1, floor_NL.shape[1])]).float()
        self.mine_NE = torch.cat([mine_NE.bool(), mine_NE.new_zeros(1, mine_NE.shape[1]).bool()])

    @classmethod
    def from_routing(
        cls,
        routing: RoutingSpec,
        *,
        num_moe_layers: int,
        num_experts: int,
        top_k: int,
        moe_layers: Sequence[int] | None = None,
        twins: TwinsSpec | None = None,
        gate: str | None = None,
    ) -> DomainPrior:
        """The prior that a routing policy asks for, layer by layer: a push towards mapped experts, a mask of all others,
        or a floor under the mapped ones.

        `moe_layers` are the numbers of the expert layers (default: 0, 1, …), by which a policy names exceptions. Of `twins`
        a mapped expert stands for those that the map does not name (`RoutingSpec.with_twins`).
        Raises SpecError for an expert or a layer that does not exist, and for a mask that leaves a token fewer than top_k
        experts, of `twins` one; and for a floor under a `gate` (its kind) that chooses by no share.
        """
        layers = range(num_moe_layers) if moe_layers is None else moe_layers
        routing.check_fits(num_experts, layers)
        routing.check_mask(num_experts, top_k, layers, twins)
        routing = routing.with_twins(twins)
        mine_NE = torch.tensor(routing.label_matrix(num_experts), dtype=torch.float32).view(-1, num_experts)
        if gate is not None:
            routing.check_gate(gate, layers)
        general_E = torch.zeros(num_experts, dtype=torch.bool)
        general_E[list(routing.general_experts)] = True
        priors = [routing.prior_in(layer) for layer in layers]
        bias_NLE = torch.stack([_bias(prior, mine_NE, general_E) for prior in priors], dim=1)
        if not any(prior.mode == "floor" for prior in priors):
            return cls(bias_NLE, top_k, twins=twins)
        floors = [prior.floor if prior.mode == "floor" else 0.0 for prior in priors]
        floor_NL = torch.tensor(floors).expand(mine_NE.shape[0], -1)
        return cls(bias_NLE, top_k, floor_NL=floor_NL, mine_NE=mine_NE, twins=twins)

    def to(self, device: torch.device | str) -> DomainPrior:
        """Move the tables to a device."""
        self.table_NLE = self.table_NLE.to(device)
        if self.floor_NL is not None:
            self.floor_NL, self.mine_NE = self.floor_NL.to(device), self.mine_NE.to(device)
        return self

    def rows(self, moe_index: int, domain_T: Tensor) -> Tensor:
        """The bias of each token in one expert layer (counted among expert layers): (T, E) fp32."""
        return self.table_NLE[domain_T, moe_index]

    def floor(self, moe_index: int, domain_T: Tensor) -> Floor | None:
        """The floor of each token in one expert layer; None when no domain has one anywhere."""
        if self.floor_NL is None:
            return None
        return Floor(self.floor_NL[domain_T, moe_index], self.mine_NE[domain_T])


def _bias(prior: LayerPrior, mine_NE: Tensor, general_E: Tensor) -> Tensor:
    """(N, E): what one layer adds to the logits of each domain."""
    if prior.mode == "bias":
        return mine_NE * prior.strength
    if prior.mode == "mask":
        return torch.zeros_like(mine_NE).masked_fill(~(mine_NE.bool() | general_E), NEG_INF)
    return torch.zeros_like(mine_NE)


def _check_bias(bias_NLE: Tensor, top_k: int, twins: TwinsSpec | None) -> None:
    if bias_NLE.ndim != 3:
        raise SpecError(f"a domain prior has 3 axes (domain, expert layer, expert), not {bias_NLE.ndim}")
    if torch.isnan(bias_NLE).any() or (bias_NLE == float("inf")).any():
        raise SpecError("a domain prior holds finite values or -inf; found NaN or +inf")
    allowed_NLE = bias_NLE > NEG_INF
    left = int(allowed_NLE.sum(-1).min()) if allowed_NLE.numel() else top_k
    if left < top_k:
        raise SpecError(f"a domain prior leaves {left} experts in a layer; top_k is {top_k}")
    seen = _least_seen(allowed_NLE, twins) if twins is not None and allowed_NLE.numel() else left
    if seen < top_k:
        raise SpecError(
            f"a domain prior leaves {left} experts in a layer, of which a token sees {seen}, for it sees one of each set of "
            f"twins; top_k is {top_k}; allow experts that are not twins of one another"
        )


def _least_seen(allowed_NLE: Tensor, twins: TwinsSpec) -> int:
    """The fewest experts that any domain leaves a token to see in a layer: one of each set of twins."""
    root_E = torch.tensor(twins.roots, device=allowed_NLE.device)
    seen_NLE = torch.zeros_like(allowed_NLE, dtype=torch.long)
    seen_NLE.scatter_reduce_(-1, root_E.expand_as(seen_NLE), allowed_NLE.long(), "amax")
    return int(seen_NLE.sum(-1).min())
