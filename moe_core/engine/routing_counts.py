"""Exact counts of tokens by phase, domain, expert layer and expert.

Each token is counted once for each of its experts in each layer, when it is first computed for its request:
padding never, tokens taken from the prefix cache never (no expert sees them), tokens computed again after a
preemption never. Beside them, for the share to own experts: by phase and domain how often a token passed an expert layer
(visits), and in how many of those one of its top-k experts was its domain's own (hits).

Shapes: P phases, N domains (row 0: none), L expert layers, E experts, T tokens of a step, K places.
"""

from __future__ import annotations

from collections.abc import Sequence as Chunks

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_core.engine.scheduler import Chunk
from moe_core.engine.sequence_counts import SequenceCounts
from moe_core.routers import Routing
from moe_core.routers.mapped import mapped_hits
from moe_core.spec import MoeSpec

PHASES = ("prefill", "decode")


class RoutingCounts:
    """An int64 tensor (P, N, L, E) of tokens, and one (P, N, 2) of visits and hits, both whole whenever they are read.

    What a step chose is kept, and added up with that of other steps when somebody reads or there is no more room: for
    the few tokens of a decoding step the dozen operations cost as much as for hundreds.
    `labels_NE` (domains without the row of none) is not 0 where an expert is mapped to a domain.
    """

    def __init__(
        self, moe: MoeSpec, labels_NE: Tensor, max_batch_tokens: int, device: torch.device | str = "cpu"
    ) -> None:
        num_layers, num_domains = len(moe.moe_layers), labels_NE.shape[0]
        self.moe_layers = moe.moe_layers
        self.top_k = moe.top_k
        self._counts_PNLE = torch.zeros(
            len(PHASES), num_domains + 1, num_layers, moe.num_experts, dtype=torch.int64, device=device
        )
        self._reach_PN2 = torch.zeros(len(PHASES), num_domains + 1, 2, dtype=torch.int64, device=device)
        self._num_rows = num_domains + 1
        self._labels_NE = labels_NE.to(device)
        self._index_of = {layer: index for index, layer in enumerate(moe.moe_layers)}
        # Choices that are not added up yet, of tokens whose rows of the table and domains are beside them; the second half
        # is for the step that runs, unless that one's choices were written where they are kept.
        self._most = max_batch_tokens
        shape = (num_layers, 2 * max_batch_tokens, moe.num_places)
        self._kept_LTK = torch.zeros(shape, dtype=torch.int64, device=device)
        self._address, self._stride = self._kept_LTK.data_ptr(), self._kept_LTK.stride(0)
        self._bytes_of_token = self._kept_LTK.stride(1) * self._kept_LTK.element_size()
        self._step_at = max_batch_tokens
        self._rows: list[int] = []
        self._domains: list[int] = []
        # Rows of single sequences, where somebody wants them.
        self._apart: SequenceCounts | None = None
        self._owners: list[int] = []
        self._layer_base_L11 = (torch.arange(num_layers, device=device) * moe.num_experts)[:, None, None]

    @property
    def counts_PNLE(self) -> Tensor:
        """Tokens by phase, domain, expert layer and expert."""
        self._add_up()
        return self._counts_PNLE

    @property
    def reach_PN2(self) -> Tensor:
        """Visits and hits by phase and domain."""
        self._add_up()
        return self._reach_PN2

    @property
    def shape_PNLE(self) -> tuple[int, ...]:
        """How many phases, domains and one, expert layers and experts there are."""
        return tuple(self._counts_PNLE.shape)

    def keep_sequences_apart(self, most: int) -> None:
        """Count the tokens of up to `most` sequences at once by themselves too, until each is taken."""
        _, _, num_layers, num_experts = self.shape_PNLE
        self._add_up()
        self._apart = SequenceCounts(most, num_layers, num_experts, self._counts_PNLE.device)

    def take_sequence(self, sequence_id: int) -> tuple[int, NDArray[np.int64]] | None:
        """How many tokens a sequence had and (L, E) their visits, once; None where it was not kept apart."""
        if self._apart is None or sequence_id not in self._apart:
            return None
        self._add_up()
        return self._apart.take(sequence_id)

    def forget(self) -> None:
        """Begin at nothing: what the golden prompt did is nobody's traffic."""
        self._rows, self._domains, self._owners = [], [], []
        if self._apart is not None:
            self._apart.forget()
        self._counts_PNLE.zero_()
        self._reach_PN2.zero_()

    @property
    def ids_LTK(self) -> Tensor:
        """The choice of every expert layer in the step that runs, or ran last; who computes a step in torch fills it."""
        return self._kept_LTK[:, self._step_at : self._step_at + self._most]

    def set_apart(self) -> None:
        """The next step's choices are written beside those that are kept, where a recording finds them too."""
        self._step_at = self._most

    def place_for(self, num_tokens: int) -> tuple[int, int]:
        """Where a native step writes its choices, which is where they are kept: an address, and what lies between layers, in
        numbers."""
        if len(self._rows) + num_tokens > self._most:
            self._add_up()
        self._step_at = len(self._rows)
        return self._address + self._step_at * self._bytes_of_token, self._stride

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
        places: list[int] = []
        rows: list[int] = []
        domains: list[int] = []
        owners: list[int] = []
        num_rows, first, apart = self._num_rows, 0, self._apart
        for chunk in chunks:
            sequence, moved, end = chunk.sequence, first - chunk.start, chunk.end
            begin = max(chunk.start, sequence.num_counted_tokens)
            if begin < end:
                # From here on it is the answer.
                border = min(max(begin, sequence.num_prompt_tokens), end)
                row = sequence.domain + 1
                places += range(begin + moved, end + moved)
                rows += [row] * (border - begin) + [num_rows + row] * (end - border)
                domains += [sequence.domain] * (end - begin)
                if apart is not None:
                    owners += [apart.row(sequence.id)] * (end - begin)
            first += chunk.num_tokens + chunk.num_rejected
        if len(self._rows) + len(rows) > self._most:
            self._add_up()
        start, end = len(self._rows), len(self._rows) + len(rows)
        if self._step_at != start or len(places) != first:
            self._kept_LTK[:, start:end] = self.ids_LTK[:, places]
        self._rows += rows
        self._domains += domains
        self._owners += owners

    def _add_up(self) -> None:
        """Add what was kept to the tables."""
        if not self._rows:
            return
        _, _, num_layers, num_experts = self._counts_PNLE.shape
        ids_LTK = self._kept_LTK[:, : len(self._rows)]
        row_T = torch.tensor(self._rows, dtype=torch.int64, device=ids_LTK.device)
        domain_T = torch.tensor(self._domains, dtype=torch.int64, device=ids_LTK.device)
        owners, self._rows, self._domains, self._owners = self._owners, [], [], []
        base_1T1 = row_T[None, :, None] * (num_layers * num_experts)
        cells_LTK = ids_LTK + self._layer_base_L11
        # An empty place adds nothing to whatever cell it falls into; the first layer's would fall before the table.
        filled = (ids_LTK >= 0).to(torch.int64).reshape(-1)
        cells_R = (cells_LTK + base_1T1).view(-1)
        self._counts_PNLE.view(-1).index_add_(0, cells_R.clamp_(min=0), filled)
        if self._apart is not None:
            self._apart.add(owners, cells_LTK, filled)
        hits_T = mapped_hits(ids_LTK, self._labels_NE, domain_T).sum(0)
        both_T2 = torch.stack([torch.full_like(hits_T, num_layers), hits_T], -1)
        self._reach_PN2.view(-1, 2).index_add_(0, row_T, both_T2)
