"""Exact counts of tokens by phase, domain, expert layer and expert.

Each token is counted once for each of its experts in each layer, when it is first computed for its request:
padding never, tokens taken from the prefix cache never (no expert sees them), tokens computed again after a
preemption never. Beside them, for the share to own experts: by phase and domain how often a token passed an expert layer
(visits), and in how many of those one of its top-k experts was its domain's own (hits).

Shapes: P phases, N domains (row 0: none), L expert layers, E experts, T tokens of a step, K places.
"""

from __future__ import annotations

from collections.abc import Sequence as Chunks

import torch
from torch import Tensor

from moe_core.engine.scheduler import Chunk
from moe_core.routers import Routing
from moe_core.routers.mapped import mapped_hits
from moe_core.spec import MoeSpec

PHASES = ("prefill", "decode")


class RoutingCounts:
    """An int64 tensor (P, N, L, E) that one index_add a step brings up to date, and one (P, N, 2) of visits and hits.

    `labels_NE` (domains without the row of none) is not 0 where an expert is mapped to a domain.
    """

    def __init__(
        self, moe: MoeSpec, labels_NE: Tensor, max_batch_tokens: int, device: torch.device | str = "cpu"
    ) -> None:
        num_layers, num_domains = len(moe.moe_layers), labels_NE.shape[0]
        self.moe_layers = moe.moe_layers
        self.top_k = moe.top_k
        self.counts_PNLE = torch.zeros(
            len(PHASES), num_domains + 1, num_layers, moe.num_experts, dtype=torch.int64, device=device
        )
        self.reach_PN2 = torch.zeros(len(PHASES), num_domains + 1, 2, dtype=torch.int64, device=device)
        self._labels_NE = labels_NE.to(device)
        self._index_of = {layer: index for index, layer in enumerate(moe.moe_layers)}
        # The choice of every expert layer in the step that runs; whoever computes the step fills it.
        shape = (num_layers, max_batch_tokens, moe.num_places)
        self.ids_LTK = torch.zeros(shape, dtype=torch.int64, device=device)
        self._layer_base_L11 = (torch.arange(num_layers, device=device) * moe.num_experts)[:, None, None]

    def forget(self) -> None:
        """Begin at nothing: what the golden prompt did is nobody's traffic."""
        self.counts_PNLE.zero_()
        self.reach_PN2.zero_()

    def observe(self, layer: int, routing: Routing) -> None:
        """Keep one layer's choice until the step ends."""
        ids_TK = routing.expert_ids_TK
        self.ids_LTK[self._index_of[layer], : ids_TK.shape[0]].copy_(ids_TK)

    def end_of_step(self, chunks: Chunks[Chunk], *, counted: bool = True) -> None:
        """Count the tokens of the step just computed, and hand each sequence that records its routing its share.

        `chunks` stand in the step's order and are not committed yet. Warm-up passes `counted=False`.
        """
        start = 0
        for chunk in chunks:
            if chunk.sequence.routed_experts is not None:
                own = slice(start, start + chunk.num_tokens)
                chunk.sequence.routed_experts.add(chunk.start, self.ids_LTK[:, own])
            start += chunk.num_tokens + chunk.num_rejected
        if counted:
            self._count(chunks)

    def _count(self, chunks: Chunks[Chunk]) -> None:
        places, rows, domains = [], [], []
        _, num_rows, num_layers, num_experts = self.counts_PNLE.shape
        first = 0
        for chunk in chunks:
            sequence = chunk.sequence
            for position in range(max(chunk.start, sequence.num_counted_tokens), chunk.end):
                phase = int(position >= sequence.num_prompt_tokens)
                places.append(first + position - chunk.start)
                rows.append(phase * num_rows + sequence.domain + 1)
                domains.append(sequence.domain)
            first += chunk.num_tokens + chunk.num_rejected
        ids_LTK = self.ids_LTK[:, :first] if len(places) == first else self.ids_LTK[:, places]
        row_T = torch.tensor(rows, dtype=torch.int64, device=ids_LTK.device)
        base_1T1 = row_T[None, :, None] * (num_layers * num_experts)
        cells = (ids_LTK + self._layer_base_L11 + base_1T1).view(-1)
        # An empty place adds nothing to whatever cell it falls into; the first layer's would fall before the table.
        filled = (ids_LTK >= 0).to(torch.int64).reshape(-1)
        self.counts_PNLE.view(-1).index_add_(0, cells.clamp_(min=0), filled)
        self._count_reach(ids_LTK, row_T, torch.tensor(domains, dtype=torch.int64, device=ids_LTK.device))

    def _count_reach(self, ids_LTK: Tensor, row_T: Tensor, domain_T: Tensor) -> None:
        num_layers = ids_LTK.shape[0]
        hits_T = mapped_hits(ids_LTK, self._labels_NE, domain_T).sum(0)
        both_T2 = torch.stack([torch.full_like(hits_T, num_layers), hits_T], -1)
        self.reach_PN2.view(-1, 2).index_add_(0, row_T, both_T2)
