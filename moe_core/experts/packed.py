"""SwiGLU experts whose weights lie in 8 or 4 bits and are widened when they are used.

Shapes: T tokens, D model width, E experts, K top_k, F expert width, U experts in use, B bytes of a row, G its groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.errors import SpecError
from moe_core.kernels import dispatch
from moe_core.kernels.gating import PLAIN, Gating
from moe_core.kernels.packing import Packed, code_bytes, dequantise, num_groups, quantise
from moe_core.kernels.torch_gated import gated_experts_torch
from moe_core.routers import Routing
from moe_core.spec.quantisation import ExpertQuantSpec

MATRICES = ("gate_up", "down")


class PackedExperts(nn.Module):
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
        super().__init__()
        self.quantisation = quantisation
        self.gating = gating
        # Rows and row length of each matrix.
        self.shapes = {
            "gate_up": (2 * intermediate_size, hidden_size),
            "down": (hidden_size, intermediate_size),
        }
        for name, (rows, width) in self.shapes.items():
            codes = torch.empty(num_experts, rows, code_bytes(width, quantisation), dtype=torch.uint8)
            per_group = (num_experts, rows, num_groups(width, quantisation))
            self.register_buffer(f"{name}_codes", codes)
            self.register_buffer(f"{name}_scales", torch.empty(per_group, dtype=torch.float16))
            if not quantisation.symmetric:
                self.register_buffer(f"{name}_zeros", torch.empty(per_group, dtype=torch.uint8))
        # Biases are few and stay as they are.
        self.gate_up_bias_E2F: nn.Parameter | None = None
        self.down_bias_ED: nn.Parameter | None = None
        if bias_dtype is not None:
            up, down = (num_experts, 2 * intermediate_size), (num_experts, hidden_size)
            self.gate_up_bias_E2F = nn.Parameter(torch.empty(up, dtype=bias_dtype))
            self.down_bias_ED = nn.Parameter(torch.empty(down, dtype=bias_dtype))
        self.kernel: str | None = None

    @property
    def num_experts(self) -> int:
        """How many experts the layer holds."""
        return self.get_buffer("down_codes").shape[0]

    @property
    def gate_up_E2FD(self) -> Tensor:
        """Packed experts have no weights that could learn: raises SpecError."""
        raise self._packed_away()

    @property
    def down_EDF(self) -> Tensor:
        """Packed experts have no weights that could learn: raises SpecError."""
        raise self._packed_away()

    def _packed_away(self) -> SpecError:
        return SpecError(
            f"the experts are packed in {self.quantisation.bits} bits and cannot be changed; "
            "start from the model before it was quantised, and quantise last"
        )

    def packed(self, name: str) -> Packed:
        """One of MATRICES as it is stored, for kernels that read codes."""
        zeros = None if self.quantisation.symmetric else self.get_buffer(f"{name}_zeros")
        return Packed(self.get_buffer(f"{name}_codes"), self.get_buffer(f"{name}_scales"), zeros)

    @torch.no_grad()
    def pack(self, name: str, weight: Tensor) -> None:
        """Quantise (E, rows, width) into the buffers of one of MATRICES, one expert at a time."""
        target = self.packed(name)
        for expert in range(self.num_experts):
            source = quantise(weight[expert], self.quantisation)
            target.codes[expert].copy_(source.codes)
            target.scales[expert].copy_(source.scales)
            if target.zeros is not None and source.zeros is not None:
                target.zeros[expert].copy_(source.zeros)

    def widened(self, name: str, experts: Tensor, dtype: torch.dtype) -> Tensor:
        """The weights of some experts, (U, rows, width)."""
        packed = self.packed(name)
        zeros = None if packed.zeros is None else packed.zeros[experts]
        chosen = Packed(packed.codes[experts], packed.scales[experts], zeros)
        return dequantise(chosen, self.shapes[name][1], self.quantisation, dtype)

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
        gate_up_U2FD, down_UDF = (self.widened(name, used_U, hidden_TD.dtype) for name in MATRICES)
        packed = (gate_up_U2FD, down_UDF, ids_N.view(routing.expert_ids_TK.shape), routing.weights_TK)
        if self.gate_up_bias_E2F is not None and self.down_bias_ED is not None:
            biases = (self.gate_up_bias_E2F[used_U], self.down_bias_ED[used_U])
            return gated_experts_torch(hidden_TD, *packed, self.gating, *biases)
        if self.gating.kind != "silu":
            return gated_experts_torch(hidden_TD, *packed, self.gating)
        return dispatch.swiglu_experts(hidden_TD, *packed, kernel=self.kernel)

    def _on_codes(self, hidden_TD: Tensor, expert_ids_TK: Tensor) -> bool:
        """Whether a kernel takes the codes as they lie."""
        if not hidden_TD.is_cuda or self.gating.kind != "silu" or not dispatch.has_triton():
            return False
        from moe_core.kernels.triton import packed

        return self.kernel in (None, "triton") and packed.supports(
            hidden_TD, expert_ids_TK, self.quantisation
        )

    def _from_codes(self, hidden_TD: Tensor, routing: Routing) -> Tensor:
        from moe_core.kernels.triton.packed import packed_swiglu_experts

        gate_up, down = (self.packed(name) for name in MATRICES)
        num_ff = self.shapes["down"][1]
        return packed_swiglu_experts(
            hidden_TD, gate_up, down, num_ff, self.quantisation, routing.expert_ids_TK, routing.weights_TK
        )
