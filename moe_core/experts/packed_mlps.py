"""Plain feed-forwards, down(act(up(x))), whose maps lie in 8 or 4 bits and are widened when they are used.

Shapes: T tokens, r rows of one expert, D model width, E experts, F expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.experts.packed_maps import PackedMaps
from moe_core.kernels.mixed import ACTIVATIONS
from moe_core.kernels.precision import product
from moe_core.kernels.torch_mapped import mapped_experts_torch
from moe_core.routers import Routing
from moe_core.spec.expert_kinds import MlpExpert
from moe_core.spec.quantisation import ExpertQuantSpec

# Our names of the maps, and those of `MlpExpert.matrices`.
MAPS = {"up": "w3", "down": "w2"}


class PackedMlps(PackedMaps):
    """Experts of one shape; biases are few and stay floats."""

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        expert: MlpExpert,
        quantisation: ExpertQuantSpec,
        dtype: torch.dtype,
    ) -> None:
        shapes = {"up": (expert.width, hidden_size), "down": (hidden_size, expert.width)}
        super().__init__(num_experts, shapes, quantisation)
        self.expert = expert
        self.up_bias_EF: nn.Parameter | None = None
        self.down_bias_ED: nn.Parameter | None = None
        if expert.bias:
            self.up_bias_EF = nn.Parameter(torch.empty(num_experts, expert.width, dtype=dtype))
            self.down_bias_ED = nn.Parameter(torch.empty(num_experts, hidden_size, dtype=dtype))

    @property
    def weights_N(self) -> Tensor:
        """Packed experts have no weights that could learn: raises SpecError."""
        raise self.packed_away()

    def run(self, expert: int, x_rD: Tensor) -> Tensor:
        """One expert on its rows, unweighted: (r, D)."""
        one = torch.tensor([expert], device=x_rD.device)
        up_FD, down_DF = (self.widened(name, one, x_rD.dtype)[0] for name in MAPS)
        inner_rF = product(x_rD, up_FD)
        if self.up_bias_EF is None or self.down_bias_ED is None:
            return product(ACTIVATIONS[self.expert.activation](inner_rF), down_DF)
        inner_rF = ACTIVATIONS[self.expert.activation](inner_rF + self.up_bias_EF[expert])
        return product(inner_rF, down_DF) + self.down_bias_ED[expert]

    def forward(self, hidden_TD: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of the chosen experts' outputs: (T, D) in the dtype of the input; one expert wide at a time."""
        return mapped_experts_torch(
            hidden_TD, routing.expert_ids_TK, routing.weights_TK, self.num_experts, self.run
        )
