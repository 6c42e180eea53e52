"""Lets a loaded decoder use the decode kernels; where they do not apply, each call falls back to torch by itself."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from moe_core.kernels.cpu import experts
from moe_core.kernels.cpu.library import library
from moe_core.kernels.cpu.linear import linear
from moe_core.model.layers import DenseMlp, Linear


class DecodeLinear(Linear):
    """A linear map that takes the compiled kernel for few tokens."""

    def forward(self, x_TD: Tensor) -> Tensor:
        """x · weightᵀ + bias."""
        out_TO = linear(x_TD, self.weight)
        return out_TO if self.bias is None else out_TO + self.bias


class DecodeDenseMlp(DenseMlp):
    """A dense feed-forward as the one expert of a mixture: one call instead of five."""

    def forward(self, x_TD: Tensor) -> Tensor:
        """down(silu(gate(x)) · up(x))."""
        gate_up_12FD, down_1DF = self.gate_up_proj.weight[None], self.down_proj.weight[None]
        ids_T1, weights_T1 = _the_one_expert(x_TD.shape[0])
        if not experts.supports(x_TD, gate_up_12FD, down_1DF, ids_T1):
            return super().forward(x_TD)
        return experts.swiglu_experts_cpu(x_TD, gate_up_12FD, down_1DF, ids_T1, weights_T1)


def attach(model: nn.Module, num_threads: int) -> str:
    """Make `model`'s maps and experts use the kernels; the instruction set in use, or "torch" without them."""
    native = library()
    if native is None:
        return "torch"
    native.set_threads(num_threads)
    experts.register()
    for module in model.modules():
        # Only the class changes: parameters, their names and their memory stay.
        if type(module) is Linear:
            module.__class__ = DecodeLinear
        elif type(module) is DenseMlp and module.gating.kind == "silu":
            module.__class__ = DecodeDenseMlp
    return native.isa


@cache
def _the_one_expert(num_tokens: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(num_tokens, 1, dtype=torch.int64), torch.ones(num_tokens, 1)
