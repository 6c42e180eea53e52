"""SwiGLU experts whose weights lie in 8 or 4 bits and are widened when they are used.

Shapes: T tokens, D model width, E experts, K top_k, F expert width, U experts in use.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.experts.packed_maps import PackedMaps
from moe_core.kernels import dispatch
from moe_core.kernels.gating import PLAIN, Gating
from moe_core.kernels.torch_gated import gated_experts_torch
from moe_core.routers import Routing
from moe_core.spec.quantisation import ExpertQuantSpec

MATRICES = ("gate_up", "down")


class PackedExperts(PackedMaps):
    """All routed experts of a layer as buffers: codes, scales and zero points; no map of them is kept in 16 bits."""

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        quantisation: ExpertQuantSpec,
        *,
        gating: Gating = PLAIN,
        bias_dtype: torch.dtype | None = None,
    ) -> None:
        shapes = {"gate_up": (2 * intermediate_size, hidden_size), "down": (hidden_size, intermediate_size)}
        super().__init__(num_experts, shapes, quantisation)
        self.gating = gating
        # Biases are few and stay as they are.
        self.gate_up_bias_E2F: nn.Parameter | None = None
        self.down_bias_ED: nn.Parameter | None = None
        if bias_dtype is not None:
            up, down = (num_experts, 2 * intermediate_size), (num_experts, hidden_size)
            self.gate_up_bias_E2F = nn.Parameter(torch.empty(up, dtype=bias_dtype))
            self.down_bias_ED = nn.Parameter(torch.empty(down, dtype=bias_dtype))
        self.kernel: str | None = None
        # As in `GroupedExperts`.
        self.slots_E: Tensor | None = None

    @property
    def gate_up_E2FD(self) -> Tensor:
        """Packed experts have no weights that could learn: raises SpecError."""
        raise self.packed_away()

    @property
    def down_EDF(self) -> Tensor:
        """Packed experts have no weights that could learn: raises SpecError."""
        raise self.packed_away()

    def forward(self, hidden_TD: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of the chosen experts' outputs: (T, D) in the dtype of the input.

        A GPU computes from the codes; elsewhere the experts in use are widened, and only those.
        """
        if self._on_codes(hidden_TD, routing.expert_ids_TK):
            return self._from_codes(hidden_TD, routing)
        used_U, ids_N = torch.unique(routing.expert_ids_TK, return_inverse=True)
        if used_U.numel() and int(used_U[0]) < 0:
            # The first of the sorted ids is the empty place, no expert.
            used_U, ids_N = used_U[1:], ids_N - 1
        slot_U = used_U if self.slots_E is None else self.slots_E[used_U]
        gate_up_U2FD, down_UDF = (self.widened(name, slot_U, hidden_TD.dtype) for name in MATRICES)
        packed = (gate_up_U2FD, down_UDF, ids_N.view(routing.expert_ids_TK.shape), routing.weights_TK)
        if self.gate_up_bias_E2F is not None and self.down_bias_ED is not None:
            biases = (self.gate_up_bias_E2F[slot_U], self.down_bias_ED[slot_U])
            return gated_experts_torch(hidden_TD, *packed, self.gating, *biases)
        if self.gating.kind != "silu":
            return gated_experts_torch(hidden_TD, *packed, self.gating)
        return dispatch.swiglu_experts(hidden_TD, *packed, kernel=self.kernel)

    def _on_codes(self, hidden_TD: Tensor, expert_ids_TK: Tensor) -> bool:
        """Whether a kernel takes the codes as they lie."""
        plain = self.gating.kind == "silu" and self.gate_up_bias_E2F is None
        if not hidden_TD.is_cuda or not plain or not dispatch.has_triton():
            return False
        from moe_core.kernels.triton import packed

        return self.kernel in (None, "triton") and packed.supports(hidden_TD, expert_ids_TK)

    def _from_codes(self, hidden_TD: Tensor, routing: Routing) -> Tensor:
        from moe_core.kernels.triton.packed import packed_swiglu_experts

        gate_up, down = (self.packed(name) for name in MATRICES)
        num_ff = self.shapes["down"][1]
        chosen = (routing.expert_ids_TK, routing.weights_TK)
        return packed_swiglu_experts(
            hidden_TD, gate_up, down, num_ff, self.quantisation, *chosen, self.slots_E
        )
