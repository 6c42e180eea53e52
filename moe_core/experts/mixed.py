"""Experts of several kinds and widths in one layer, packed in one flat parameter with an offset for each.

Shapes: T tokens, D model width, E experts, N values of all experts, n values of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from moe_core.errors import SpecError
from moe_core.kernels.gating import Gating
from moe_core.kernels.mixed import mixed_experts_torch, num_values, run_expert
from moe_core.routers import Routing
from moe_core.spec.expert_kinds import ExpertKind


class MixedExperts(nn.Module):
    """All experts of a layer, none of them like another: expert e is the values from offsets[e] to offsets[e + 1]."""

    def __init__(self, kinds: Sequence[ExpertKind], hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.hidden_size = hidden_size
        self.offsets = (0, *accumulate(num_values(kind, hidden_size) for kind in kinds))
        self.weights_N = nn.Parameter(torch.empty(self.offsets[-1], dtype=dtype))

    @property
    def num_experts(self) -> int:
        """How many experts the layer holds."""
        return len(self.kinds)

    @property
    def gate_up_E2FD(self) -> Tensor:
        """Experts of several kinds have no common shape: raises SpecError."""
        raise self._unlike()

    @property
    def down_EDF(self) -> Tensor:
        """Experts of several kinds have no common shape: raises SpecError."""
        raise self._unlike()

    @property
    def gating(self) -> Gating:
        """Experts of several kinds have no common gating: raises SpecError."""
        raise self._unlike()

    def _unlike(self) -> SpecError:
        return SpecError(
            "the experts of this layer are of different kinds and widths (expert_kinds); this operation is for layers "
            "whose experts are alike"
        )

    def part(self, expert: int) -> Tensor:
        """(n,) the values of one expert, sharing memory; empty for experts without weights."""
        return self.weights_N[self.offsets[expert] : self.offsets[expert + 1]]

    def tensors(self, expert: int) -> dict[str, Tensor]:
        """One expert's tensors by their names in a checkpoint, sharing memory."""
        matrices = self.kinds[expert].matrices(self.hidden_size)
        parts = self.part(expert).split([matrix.numel for matrix in matrices]) if matrices else ()
        return {m.name: part.view(m.shape) for m, part in zip(matrices, parts, strict=True)}

    def run(self, expert: int, x_TD: Tensor, weights_n: Tensor | None = None) -> Tensor:
        """One expert on all tokens, unweighted: (T, D); `weights_n` in the place of its own values."""
        own_n = self.part(expert) if weights_n is None else weights_n
        return run_expert(self.kinds[expert], own_n, x_TD)

    def forward(self, hidden_TD: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of the chosen experts' outputs: (T, D) in the dtype of the input."""
        ids_TK, weights_TK = routing.expert_ids_TK, routing.weights_TK
        return mixed_experts_torch(hidden_TD, self.weights_N, self.kinds, ids_TK, weights_TK)
