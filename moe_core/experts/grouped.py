"""Gated experts of one layer, their weights packed so that one expert is one contiguous block.

Shapes: T tokens, D model width, E experts, K top_k, F expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.kernels import dispatch
from moe_core.kernels.gating import PLAIN, Gating
from moe_core.kernels.torch_gated import gated_experts_torch
from moe_core.routers import Routing


class GroupedExperts(nn.Module):
    """All experts of a layer: gate rows first, then up rows, then the way back."""

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        dtype: torch.dtype = torch.float32,
        *,
        gating: Gating = PLAIN,
        bias: bool = False,
    ) -> None:
        super().__init__()
        gate_up_shape = (num_experts, 2 * intermediate_size, hidden_size)
        self.gate_up_E2FD = nn.Parameter(torch.empty(gate_up_shape, dtype=dtype))
        self.down_EDF = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size, dtype=dtype))
        self.gate_up_bias_E2F: nn.Parameter | None = None
        self.down_bias_ED: nn.Parameter | None = None
        if bias:
            self.gate_up_bias_E2F = nn.Parameter(torch.empty(gate_up_shape[:2], dtype=dtype))
            self.down_bias_ED = nn.Parameter(torch.empty(num_experts, hidden_size, dtype=dtype))
        self.gating = gating
        # The name of a kernel to use always; None lets the dispatcher choose.
        self.kernel: str | None = None
        # (E,) int64: where each expert lies, once the weights are the slots of a pool that layers share.
        self.slots_E: Tensor | None = None

    @property
    def num_experts(self) -> int:
        """How many experts the layer holds."""
        return (self.down_EDF if self.slots_E is None else self.slots_E).shape[0]

    def forward(self, hidden_TD: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of the chosen experts' outputs: (T, D) in the dtype of the input."""
        packed = (self.gate_up_E2FD, self.down_EDF, routing.expert_ids_TK, routing.weights_TK)
        if self.gating.kind != "silu" or self.gate_up_bias_E2F is not None:
            biases = (self.gate_up_bias_E2F, self.down_bias_ED)
            return gated_experts_torch(hidden_TD, *packed, self.gating, *biases, slots_E=self.slots_E)
        return dispatch.swiglu_experts(hidden_TD, *packed, kernel=self.kernel, slots_E=self.slots_E)
