"""The parts of a decoder block: linear maps, norm, dense and mixture feed-forward.

Shapes: T tokens, D model width, E experts, K top_k, F width of a feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from moe_core.experts import GroupedExperts, MixedExperts, PackedExperts
from moe_core.kernels.cpu.training import rms_norm, supports
from moe_core.kernels.gating import PLAIN, Gating
from moe_core.kernels.precision import product
from moe_core.model.context import RoutingContext
from moe_core.routers import Routing, decide
from moe_core.spec import ModelSpec, MoeSpec


class Linear(nn.Module):
    """A map whose weight (out, in) and bias, if any, start uninitialised: loading fills them."""

    def __init__(self, width_in: int, width_out: int, dtype: torch.dtype, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(width_out, dtype=dtype)) if bias else None

    def forward(self, x_TD: Tensor) -> Tensor:
        """x · weightᵀ + bias."""
        out_TO = product(x_TD, self.weight)
        return out_TO if self.bias is None else out_TO + self.bias


class Embedding(nn.Module):
    """One row for each token, uninitialised at first."""

    def __init__(self, num_tokens: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, width, dtype=dtype))

    def forward(self, ids_T: Tensor) -> Tensor:
        """Rows of the given tokens: (T, D)."""
        return nn.functional.embedding(ids_T, self.weight)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """The same rows as an output map: (T, V)."""
        return product(hidden_TD, self.weight)


class RmsNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        """Normalise the last axis; the result has the input's dtype."""
        if torch.is_grad_enabled() and supports(x_TD, self.weight):
            return rms_norm(x_TD, self.weight, self.eps)
        return nn.functional.rms_norm(x_TD, self.weight.shape, self.weight, self.eps)


class ZeroCentredRmsNorm(RmsNorm):
    """The same with 1 + weight in the place of the weight, added in float32."""

    def forward(self, x_TD: Tensor) -> Tensor:
        """Normalise the last axis; the result has the input's dtype."""
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        normed_TD = nn.functional.rms_norm(
            x_TD.to(wide), self.weight.shape, 1.0 + self.weight.to(wide), self.eps
        )
        return normed_TD.to(x_TD.dtype)


def norm_of(spec: ModelSpec, width: int, dtype: torch.dtype) -> RmsNorm:
    """The norm of a model."""
    kind = ZeroCentredRmsNorm if spec.zero_centred_norms else RmsNorm
    return kind(width, spec.rms_norm_eps, dtype)


class DenseMlp(nn.Module):
    """Gated feed-forward with gate and up packed in one map."""

    def __init__(self, width: int, intermediate: int, dtype: torch.dtype, gating: Gating = PLAIN) -> None:
        super().__init__()
        self.gating = gating
        self.gate_up_proj = Linear(width, 2 * intermediate, dtype)
        self.down_proj = Linear(intermediate, width, dtype)

    def forward(self, x_TD: Tensor) -> Tensor:
        """down(gating(gate(x), up(x)))."""
        gate_TF, up_TF = self.gate_up_proj(x_TD).chunk(2, dim=-1)
        out: Tensor = self.down_proj(self.gating(gate_TF, up_TF))
        return out


class Router(nn.Module):
    """The gate of one layer: its tensors by the names of the specification, float32 in every model."""

    # Every gate but a hash table with equal weights has this map from hidden state to logits.
    weight: nn.Parameter

    def __init__(self, moe: MoeSpec, width: int, vocab_size: int) -> None:
        super().__init__()
        self.moe = moe
        for tensor in moe.gate_tensors(width, vocab_size):
            empty = torch.empty(tensor.shape, dtype=torch.float32)
            self.register_parameter(tensor.name, nn.Parameter(empty, requires_grad=tensor.learns))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `half` and their like do: tensors go to another device, and stay float32.

        In bfloat16 a choice between near scores would fall otherwise, and a table's expert 301 would be number 300.
        """

        def kept(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrowed = moved.is_floating_point() and moved.element_size() < tensor.element_size()
            return tensor.to(moved.device) if narrowed else moved

        return super()._apply(kept, recurse)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the gate."""
        return {name: tensor for name, tensor in self._parameters.items() if tensor is not None}

    def forward(self, x_TD: Tensor, context: RoutingContext, moe_index: int) -> Routing:
        """Where the tokens go, by this layer's gate and what its surroundings say."""
        return decide(context.rule(self.moe), self.tensors, context.call(self.moe, moe_index, x_TD))


class MoeMlp(nn.Module):
    """Router, experts and an optional shared expert in the place of a dense feed-forward."""

    def __init__(self, spec: ModelSpec, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        moe = spec.moe
        assert moe is not None
        self.layer = layer
        self.moe_index = moe.moe_layers.index(layer)
        self.moe = moe
        self.router = Router(moe, spec.hidden_size, spec.vocab_size)
        sizes = (moe.num_experts, spec.hidden_size, moe.moe_intermediate_size)
        gating = Gating.of(spec, spec.expert_clamp(layer))
        self.experts: GroupedExperts | PackedExperts | MixedExperts
        if moe.expert_kinds is not None:
            self.experts = MixedExperts(moe.expert_kinds, spec.hidden_size, dtype)
        elif moe.quantisation is None:
            self.experts = GroupedExperts(*sizes, dtype, gating=gating, bias=moe.expert_bias)
        else:
            bias = dtype if moe.expert_bias else None
            self.experts = PackedExperts(*sizes, moe.quantisation, gating=gating, bias_dtype=bias)
        shared, beside = moe.shared_intermediate_size, Gating.of(spec, spec.dense_clamp(layer))
        self.shared_expert = DenseMlp(spec.hidden_size, shared, dtype, beside) if shared else None
        self.shared_gate = Linear(spec.hidden_size, 1, dtype) if moe.shared_gate else None

    def forward(self, x_TD: Tensor, context: RoutingContext | None) -> Tensor:
        """Route, run the chosen experts, add the shared one."""
        context = context or RoutingContext()
        routing: Routing = self.router(x_TD, context, self.moe_index)
        if context.observe is not None:
            context.observe(self.layer, routing)
        return self.with_shared(x_TD, self._routed(x_TD, routing))

    def with_shared(self, x_TD: Tensor, out_TD: Tensor) -> Tensor:
        """What the chosen experts gave for `x_TD` and the shared expert's part, where there is one."""
        if self.shared_expert is None:
            return out_TD
        shared_TD: Tensor = self.shared_expert(x_TD)
        return out_TD + (
            shared_TD if self.shared_gate is None else torch.sigmoid(self.shared_gate(x_TD)) * shared_TD
        )

    def _routed(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """The experts' part: of tokens, or of slots; with what passes where an expert was full."""
        if routing.mix is not None:
            slots_RD = routing.mix.slots_of(x_TD).to(x_TD.dtype)
            out_RD: Tensor = self.experts(slots_RD, routing.mix.routing())
            return routing.mix.tokens_of(out_RD).to(x_TD.dtype)
        out_TD: Tensor = self.experts(x_TD, routing)
        if routing.overflow is None or routing.overflow.passed_T is None:
            return out_TD
        return out_TD + (routing.overflow.passed_T[:, None] * x_TD.float()).to(x_TD.dtype)
