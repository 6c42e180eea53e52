"""The parts of a decoder block: norm, rotary positions, dense and mixture feed-forward.

Shapes: T tokens, D model width, E experts, K top_k, F width of a feed-forward, H heads, d head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.errors import SpecError
from moe_core.experts import GroupedExperts, PackedExperts
from moe_core.kernels.precision import product
from moe_core.model.context import RoutingContext
from moe_core.routers import route
from moe_core.routers.twins import twin_bias
from moe_core.spec import ModelSpec


class Linear(nn.Module):
    """A map without bias whose weight (out, in) starts uninitialised: loading fills it."""

    def __init__(self, width_in: int, width_out: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in, dtype=dtype))

    def forward(self, x_TD: Tensor) -> Tensor:
        """x · weightᵀ."""
        return product(x_TD, self.weight)


class Embedding(nn.Module):
    """One row for each token, uninitialised at first."""

    def __init__(self, num_tokens: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, width, dtype=dtype))

    def forward(self, ids_T: Tensor) -> Tensor:
        """Rows of the given tokens: (T, D)."""
        return nn.functional.embedding(ids_T, self.weight)


class RmsNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        """Normalise the last axis; the result has the input's dtype."""
        return nn.functional.rms_norm(x_TD, self.weight.shape, self.weight, self.eps)


def rotary_table(positions_T: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of every position and frequency, (T, 1, d/2) float32, ready to broadcast over heads."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_T.device) / head_dim
    angles = positions_T.float()[:, None, None] * (1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def rotate(x_THd: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
    """Rotate pairs (i, i + d/2): the Hugging Face order of Llama's rotary embedding."""
    low, high = x_THd.chunk(2, dim=-1)
    return torch.cat([low * cos_T1h - high * sin_T1h, high * cos_T1h + low * sin_T1h], dim=-1)


class DenseMlp(nn.Module):
    """SwiGLU feed-forward with gate and up packed in one map."""

    def __init__(self, width: int, intermediate: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up_proj = Linear(width, 2 * intermediate, dtype)
        self.down_proj = Linear(intermediate, width, dtype)

    def forward(self, x_TD: Tensor) -> Tensor:
        """down(silu(gate(x)) · up(x))."""
        gate_TF, up_TF = self.gate_up_proj(x_TD).chunk(2, dim=-1)
        out: Tensor = self.down_proj(nn.functional.silu(gate_TF) * up_TF)
        return out


class Router(nn.Module):
    """The gate of one layer: a single map from hidden state to expert logits, float32 in every model."""

    def __init__(self, num_experts: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, width, dtype=torch.float32))


class MoeMlp(nn.Module):
    """Router, experts and an optional shared expert in the place of a dense feed-forward."""

    def __init__(self, spec: ModelSpec, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        moe = spec.moe
        assert moe is not None
        if moe.gate.kind != "softmax_topk" or moe.gate.order != "before" or moe.capacity is not None:
            raise SpecError(f"this decoder cannot run the gate {moe.gate!r} with capacity {moe.capacity!r} yet")
        self.layer = layer
        self.moe_index = moe.moe_layers.index(layer)
        self.moe = moe
        self.router = Router(moe.num_experts, spec.hidden_size)
        sizes = (moe.num_experts, spec.hidden_size, moe.moe_intermediate_size)
        self.experts: GroupedExperts | PackedExperts = (
            GroupedExperts(*sizes, dtype)
            if moe.quantisation is None
            else PackedExperts(*sizes, moe.quantisation)
        )
        shared = moe.shared_intermediate_size
        self.shared_expert = DenseMlp(spec.hidden_size, shared, dtype) if shared else None

    def forward(self, x_TD: Tensor, context: RoutingContext | None) -> Tensor:
        """Route, run the chosen experts, add the shared one."""
        context = context or RoutingContext()
        routing = route(
            x_TD,
            self.router.weight,
            top_k=self.moe.top_k,
            norm_topk_prob=self.moe.norm_topk_prob,
            temperature=self.moe.temperature,
            bias_TE=self._bias(x_TD, context.bias_for(self.moe_index)),
            selection_bias_E=context.selection_bias_for(self.moe_index),
            forced_TK=context.forced_TK,
        )
        if context.observe is not None:
            context.observe(self.layer, routing)
        out_TD: Tensor = self.experts(x_TD, routing)
        return out_TD if self.shared_expert is None else out_TD + self.shared_expert(x_TD)

    def _bias(self, x_TD: Tensor, prior_TE: Tensor | None) -> Tensor | None:
        """The domain prior, and -inf for the twins that a token does not see."""
        twins = self.moe.twins
        if twins is None:
            return prior_TE
        logits_TE = None if twins.hold is None else x_TD.float() @ self.router.weight.t()
        return twin_bias(twins, x_TD, logits_TE, prior_TE)
