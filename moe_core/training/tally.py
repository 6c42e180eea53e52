"""Exact counts of a run's routed tokens and sums of its losses; the figures are those of `operations.metrics`.

Shapes: T tokens, L expert layers, E experts, K top_k, N domains (the last row of a table is "no domain").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_core.operations.metrics import dead_experts, load_entropy, max_violation, work_violation
from moe_core.routers import Routing
from moe_core.routers.mapped import label_table, mapped_hits
from moe_core.spec import ModelSpec, RoutingSpec


def costs_of(spec: ModelSpec) -> Tensor | None:
    """(E,) float32: what a token on each expert counts for when loads are evened; None where experts are alike."""
    costs = None if spec.moe is None else spec.moe.balance_costs(spec.hidden_size)
    return None if costs is None else torch.tensor(costs, dtype=torch.float32)


@dataclass(slots=True)
class Tally:
    """Exact counts of routed tokens, and sums of losses; padding never enters.

    A token counts once for each of its experts in `load` and once in `tokens`, `hits` and `hesitation`.
    """

    moe_layers: tuple[int, ...]
    codes: tuple[str, ...]
    labels_NE: Tensor
    load_NLE: Tensor
    hits_NL: Tensor
    tokens_N: Tensor
    hesitation_L: Tensor
    loss_N: Tensor
    targets_N: Tensor
    # (E,) what a token on each expert costs, where experts are not alike.
    cost_E: Tensor | None = None

    @classmethod
    def empty(cls, moe_layers: tuple[int, ...], codes: tuple[str, ...], labels_NE: Tensor) -> Tally:
        """Nothing counted yet, on the device of the labels; one row a domain and one for tokens of no domain."""
        device = labels_NE.device
        rows, layers, experts = len(codes) + 1, len(moe_layers), labels_NE.shape[1]
        return cls(
            moe_layers=moe_layers,
            codes=codes,
            labels_NE=labels_NE,
            load_NLE=torch.zeros(rows, layers, experts, dtype=torch.int64, device=device),
            hits_NL=torch.zeros(rows, layers, dtype=torch.int64, device=device),
            tokens_N=torch.zeros(rows, dtype=torch.int64, device=device),
            hesitation_L=torch.zeros(layers, dtype=torch.float64, device=device),
            loss_N=torch.zeros(rows, dtype=torch.float64, device=device),
            targets_N=torch.zeros(rows, dtype=torch.int64, device=device),
        )

    @classmethod
    def of(cls, spec: ModelSpec, routing: RoutingSpec, device: torch.device | str = "cpu") -> Tally:
        """An empty tally for a mixture and a routing policy."""
        assert spec.moe is not None
        labels_NE = label_table(routing, spec.moe).to(device)
        tally = cls.empty(spec.moe.moe_layers, routing.codes, labels_NE)
        tally.cost_E = costs_of(spec)
        return tally

    def count_routing(self, layer: int, routing: Routing, real_T: Tensor, domain_T: Tensor) -> None:
        """Add one layer's decisions on one batch."""
        at = self.moe_layers.index(layer)
        ids_RK = routing.expert_ids_TK[real_T]
        domain_R = domain_T[real_T]
        # -1 finds the last row.
        rows_R = domain_R % len(self.tokens_N)
        num_experts = self.load_NLE.shape[2]
        flat = (rows_R[:, None] * num_experts + ids_RK)[ids_RK >= 0]
        counts = torch.bincount(flat, minlength=self.load_NLE.shape[0] * num_experts)
        self.load_NLE[:, at] += counts.view(-1, num_experts)
        hits_R = mapped_hits(ids_RK, self.labels_NE, domain_R)
        self.hits_NL[:, at] += torch.bincount(rows_R[hits_R], minlength=len(self.tokens_N))
        probs_RE = routing.probs_TE[real_T].detach().double()
        self.hesitation_L[at] -= torch.xlogy(probs_RE, probs_RE).sum()

    def count_tokens(self, real_T: Tensor, domain_T: Tensor) -> None:
        """Add one batch's tokens, once for all layers."""
        self.tokens_N += torch.bincount(domain_T[real_T] % len(self.tokens_N), minlength=len(self.tokens_N))

    def count_losses(self, loss_P: Tensor, domain_P: Tensor) -> None:
        """Add the loss of each position that has one, with its domain."""
        rows_P = domain_P % len(self.loss_N)
        self.loss_N.index_add_(0, rows_P, loss_P.detach().double())
        self.targets_N += torch.bincount(rows_P, minlength=len(self.targets_N))

    @property
    def load_LE(self) -> Tensor:
        """Load of every expert over all domains, on the CPU: figures are made of it."""
        return self.load_NLE.sum(0).cpu()

    def mapped_share(self) -> float | None:
        """Share of the tokens of mapped domains whose top-k holds one of their experts; None without any."""
        tokens = int(self.tokens_N[:-1].sum())
        if not tokens:
            return None
        return float((self.hits_NL[:-1].sum(0).double() / tokens).mean())

    def hesitation(self) -> float:
        """Mean entropy of the router's probabilities over log E: 0 is certain, 1 is a guess."""
        tokens, num_experts = int(self.tokens_N.sum()), self.load_NLE.shape[2]
        if not tokens or num_experts < 2:
            return 0.0
        return float((self.hesitation_L / tokens / math.log(num_experts)).mean())

    def loss_by_domain(self) -> dict[str, float]:
        """Mean loss in nats of the tokens of each domain that has any; "" is no domain."""
        names = (*self.codes, "")
        return {
            name: float(self.loss_N[row] / self.targets_N[row])
            for row, name in enumerate(names)
            if int(self.targets_N[row])
        }

    def mean_loss(self) -> float | None:
        """Mean over domains of each domain's mean loss, so that a domain with long replies has no more weight."""
        by_domain = self.loss_by_domain()
        return sum(by_domain.values()) / len(by_domain) if by_domain else None

    def share_by_domain(self) -> dict[str, float]:
        """Mapped share of each mapped domain."""
        return {
            code: float((self.hits_NL[row].double() / self.tokens_N[row]).mean())
            for row, code in enumerate(self.codes)
            if int(self.tokens_N[row])
        }

    def heat(self) -> dict[str, Any]:
        """Layer × expert counts for a picture."""
        return {
            "layers": list(self.moe_layers),
            "num_experts": self.load_NLE.shape[2],
            "counts": self.load_LE.tolist(),
        }

    def summary(self) -> dict[str, Any]:
        """Every figure of a report."""
        return {
            "loss": self.mean_loss(),
            "loss_by_domain": self.loss_by_domain(),
            "mapped_share": self.mapped_share(),
            "mapped_share_by_domain": self.share_by_domain(),
            "max_vio": max_violation(self.load_LE),
            "entropy": load_entropy(self.load_LE),
            "hesitation": self.hesitation(),
            "dead_experts": dead_experts(self.load_LE),
            "tokens": int(self.tokens_N.sum()),
            "loss_tokens": int(self.targets_N.sum()),
            "heat": self.heat(),
            **({} if self.cost_E is None else {"work_vio": work_violation(self.load_LE, self.cost_E)}),
        }
