"""Lets a loaded decoder use the decode kernels; where they do not apply, each call falls back to torch by itself."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from moe_core.errors import SpecError
from moe_core.experts import GroupedExperts, PackedExperts
from moe_core.experts.packed import MATRICES
from moe_core.kernels.cpu import experts
from moe_core.kernels.cpu.library import library
from moe_core.kernels.cpu.linear import linear
from moe_core.kernels.cpu.panels import ExpertPanels, bfloat16_panels, code_panels
from moe_core.kernels.precision import has_tiles
from moe_core.model.layers import DenseMlp, Linear
from moe_core.routers import Routing


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


class _InPanels:
    """What experts whose weights lie in panels have in common."""

    panels: ExpertPanels

    def forward(self, hidden_TD: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of the chosen experts' outputs: (T, D) bfloat16; raises SpecError while gradients are recorded."""
        if torch.is_grad_enabled():
            raise SpecError("experts in panels cannot learn: load the model anew to train it")
        return self.panels.run(hidden_TD, routing.expert_ids_TK, routing.weights_TK)


class PanelExperts(_InPanels, GroupedExperts):
    """bfloat16 experts in panels; the parameters keep their names and shapes, and no memory."""


class PanelPackedExperts(_InPanels, PackedExperts):
    """Experts of 8 or 4 bits in panels; the buffers keep their names and shapes, and no memory."""


def attach(model: nn.Module, num_threads: int, *, moves_experts: bool = True) -> str:
    """Make `model`'s maps and experts use the kernels; the instruction set in use, or "torch" without them.

    Experts of a bfloat16 model move into panels, layer by layer, so that their weights are held once; such a model can
    answer, but neither learn nor be saved. Without `moves_experts` they stay where they are.
    """
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
        elif not moves_experts:
            continue
        elif type(module) is PackedExperts and _is_bfloat16(model) and module.gating.kind == "silu":
            _pack_codes(module)
        elif type(module) is GroupedExperts and _fits_panels(module):
            _pack_bfloat16(module)
    return native.isa


def _is_bfloat16(model: nn.Module) -> bool:
    return next(model.parameters()).dtype is torch.bfloat16


def _fits_panels(module: GroupedExperts) -> bool:
    """Plain bfloat16 experts, where torch has no matrix tiles that multiply many rows faster than panels do."""
    weight = module.down_EDF
    plain = module.gating.kind == "silu" and module.gate_up_bias_E2F is None and module.kernel is None
    return plain and weight.dtype is torch.bfloat16 and weight.device.type == "cpu" and not has_tiles()


def _pack_bfloat16(module: GroupedExperts) -> None:
    panels = bfloat16_panels(module.gate_up_E2FD, module.down_EDF)
    for name in ("gate_up_E2FD", "down_EDF"):
        empty = torch.empty(module.get_parameter(name).shape, dtype=torch.bfloat16, device="meta")
        setattr(module, name, nn.Parameter(empty, requires_grad=False))
    module.__class__ = PanelExperts
    module.panels = panels


def _pack_codes(module: PackedExperts) -> None:
    num_ff, width = module.shapes["gate_up"][0] // 2, module.shapes["gate_up"][1]
    gate_up, down = (module.packed(name) for name in MATRICES)
    panels = code_panels(gate_up, down, width, num_ff, module.quantisation)
    for name, buffer in list(module.named_buffers()):
        setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="meta"))
    module.__class__ = PanelPackedExperts
    module.panels = panels


@cache
def _the_one_expert(num_tokens: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(num_tokens, 1, dtype=torch.int64), torch.ones(num_tokens, 1)
