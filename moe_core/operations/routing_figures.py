"""Every figure of routing of a run over logs, layer by layer and as the mean over layers, for a report.

The figures are those of `moe_core.operations.metrics`; here is what they are taken of. A load counts what experts got, as
every report does. Layers that mix tokens in slots choose nothing and have no row.

Shapes: T tokens, E experts, K places of a token, L expert layers, N domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from moe_core.model.context import RoutingContext
from moe_core.model.decoder import Decoder
from moe_core.operations import metrics
from moe_core.operations.passes import hidden_of
from moe_core.operations.prompts import Prompts
from moe_core.routers import Routing
from moe_core.routers.scores import choosing_scores
from moe_core.spec import MoeSpec

# Layer → (T, K) int64: the choices of the real tokens of a run, in its order.
Choices = dict[int, Tensor]
NONE = -1


@dataclass(slots=True)
class LayerNotes:
    """What one layer did with the real tokens of every batch."""

    num_experts: int
    ids: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    domains: list[Tensor] = field(default_factory=list)
    loads: list[Tensor] = field(default_factory=list)
    margins: list[Tensor] = field(default_factory=list)
    dropped: list[Tensor] = field(default_factory=list)
    squared_z: float = 0.0

    def add(self, routing: Routing, real_T: Tensor, token_T: Tensor, domain_T: Tensor, moe: MoeSpec) -> None:
        """Note one batch."""
        logits_TE = routing.logits_TE[real_T].detach().cpu()
        self.ids.append(routing.expert_ids_TK[real_T].detach().cpu())
        self.tokens.append(token_T[real_T].cpu())
        self.domains.append(domain_T[real_T].cpu())
        chosen = self.ids[-1][self.ids[-1] >= 0]
        self.loads.append(torch.bincount(chosen, minlength=self.num_experts))
        scores_TE = choosing_scores(moe.gate, routing)[real_T].detach().cpu()
        self.margins.append(metrics.margins(scores_TE, moe.top_k))
        levels_TS = None if routing.levels_TS is None else routing.levels_TS[real_T].detach().cpu()
        self.squared_z += metrics.router_z(logits_TE, levels_TS) * logits_TE.shape[0]
        if routing.overflow is not None:
            wanted_TK = routing.overflow.wanted_TK[real_T] >= 0
            self.dropped.append(routing.overflow.dropped_TK[real_T][wanted_TK].cpu())

    def choices(self) -> Tensor:
        """(T, K) int64, -1 in empty places."""
        most = max(ids.shape[1] for ids in self.ids)
        return torch.cat([pad(ids, (0, most - ids.shape[1]), value=NONE) for ids in self.ids])

    def figures(self, num_domains: int, before_TK: Tensor | None) -> dict[str, float | int | None]:
        """The row of the layer; `before_TK` is what the same tokens chose before."""
        ids_TK, load_BLE = self.choices(), torch.stack(self.loads)[:, None]
        num_tokens = ids_TK.shape[0]
        together_EE = metrics.coactivation(ids_TK, self.num_experts)
        _, token_T = torch.unique(torch.cat(self.tokens), return_inverse=True)
        vocabulary = int(token_T.max()) + 1 if num_tokens else 1
        margin_T = torch.cat(self.margins)
        finite_T = margin_T[torch.isfinite(margin_T)]
        dropped = torch.cat(self.dropped) if self.dropped else torch.zeros(0, dtype=torch.bool)
        row: dict[str, float | int | None] = {
            **metrics.load_figures(load_BLE.sum(0)),
            "max_vio_batch": metrics.max_violation_batch(load_BLE),
            "drop_rate": metrics.drop_rate(~dropped),
            "router_z": self.squared_z / max(1, num_tokens),
            "margin": float(finite_T.median()) if finite_T.numel() else None,
            "coactivation": float(together_EE.max()),
            "domain_specialisation": self._domain_specialisation(num_domains),
            "vocabulary_specialisation": metrics.vocabulary_specialisation(
                ids_TK, token_T, self.num_experts, vocabulary
            )[1],
        }
        if before_TK is not None and before_TK.shape[0] == num_tokens:
            row["agreement"] = metrics.agreement(before_TK, ids_TK)
            row["saturation"] = metrics.saturation(before_TK, ids_TK)
        return row

    def load_by_domain(self, num_domains: int) -> Tensor:
        """(N, E) int64: how many choices of each domain's tokens every expert got."""
        ids_TK, domain_T = self.choices(), torch.cat(self.domains)
        load_NE = torch.zeros(num_domains, self.num_experts, dtype=torch.long)
        for domain in range(num_domains):
            mine = ids_TK[domain_T == domain]
            load_NE[domain] = torch.bincount(mine[mine >= 0], minlength=self.num_experts)
        return load_NE

    def _domain_specialisation(self, num_domains: int) -> float | None:
        """The largest share of a domain's choices that one expert gets, mean over the domains that are there."""
        load_NE = self.load_by_domain(num_domains)
        peak_N = metrics.domain_specialisation(load_NE[:, None])[:, 0].max(-1).values[load_NE.sum(-1) > 0]
        return float(peak_N.mean()) if peak_N.numel() else None


class RoutingFigures:
    """Collects the decisions of every batch of a run."""

    def __init__(self, moe: MoeSpec, num_domains: int) -> None:
        self.moe, self.num_domains = moe, num_domains
        self.layers: dict[int, LayerNotes] = {}

    @classmethod
    def of(cls, model: Decoder, prompts: Prompts) -> RoutingFigures | None:
        """Ready for a model's passes over prompts; None for a dense model."""
        return None if model.spec.moe is None else cls(model.spec.moe, len(prompts.codes))

    def observe(self, batch: Prompts) -> RoutingContext:
        """What notes the routing of a pass over this batch (`moe_core.operations.passes.Observe`)."""
        real_T, token_T, domain_T = batch.real_T, batch.ids_NS.flatten(), batch.domain_T
        return RoutingContext(
            observe=lambda layer, routing: self.add(layer, routing, real_T, token_T, domain_T)
        )

    def add(self, layer: int, routing: Routing, real_T: Tensor, token_T: Tensor, domain_T: Tensor) -> None:
        """Note one layer's decisions on one batch.

        Args:
            layer: its number in the model.
            routing: what the gate decided for T tokens.
            real_T: (T,) bool, False for padding.
            token_T: (T,) int64 vocabulary entries.
            domain_T: (T,) int64 domains from 0, -1 for none.
        """
        if routing.mix is None and routing.expert_ids_TK.shape[0] == real_T.shape[0]:
            notes = self.layers.setdefault(layer, LayerNotes(self.moe.num_experts))
            notes.add(routing, real_T, token_T, domain_T, self.moe)

    def choices(self) -> Choices:
        """What every real token chose in each layer, to compare a later run with."""
        return {layer: notes.choices() for layer, notes in self.layers.items()}

    def loads_by_domain(self) -> dict[int, Tensor]:
        """Layer → (N, E) int64: how many choices of each domain's tokens every expert of it got."""
        return {layer: notes.load_by_domain(self.num_domains) for layer, notes in sorted(self.layers.items())}

    def report(self, before: Mapping[int, Tensor] | None = None) -> dict[str, Any]:
        """`layers`, one row each with its number, and their `mean`; plain data, None where there is nothing to say.

        `before` are choices of the same tokens among experts of the same numbers: then `agreement` and `saturation` tell
        how far the choice is the same.
        """
        rows = [
            {"layer": layer, **notes.figures(self.num_domains, (before or {}).get(layer))}
            for layer, notes in sorted(self.layers.items())
        ]
        return {"layers": rows, "mean": _mean(rows)}


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = [name for name in (rows[0] if rows else {}) if name != "layer"]
    told = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: float(sum(values) / len(values)) for name, values in told.items() if values}


@torch.no_grad()
def routing_figures(model: Decoder, prompts: Prompts) -> RoutingFigures:
    """The figures of a mixture on prompts, each batch of them counted as one."""
    figures = RoutingFigures.of(model, prompts)
    assert figures is not None
    for batch in prompts.batches():
        hidden_of(model, batch, figures.observe(batch))
    return figures


def comparable(one: MoeSpec | None, other: MoeSpec | None) -> bool:
    """Whether the numbers of experts mean the same in both: as many experts in the same layers."""
    if one is None or other is None:
        return False
    return one.num_experts == other.num_experts and one.moe_layers == other.moe_layers
