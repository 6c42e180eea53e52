"""SwiGLU experts on a GPU: sort, gate·up·SwiGLU, down, combine; and backwards.

Shapes: T tokens, D model width, E experts, K top_k, F expert width, R = T·K rows in expert order.
No host sync anywhere: the number of row tiles is bounded by what the host knows, and surplus blocks leave at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from moe_core.kernels.triton.activation_backward import activation_backward
from moe_core.kernels.triton.align import MAX_EXPERTS, Rows, align
from moe_core.kernels.triton.chip import chip_of
from moe_core.kernels.triton.combine import combine
from moe_core.kernels.triton.gate_up import gate_up_swiglu
from moe_core.kernels.triton.gather import gather_rows
from moe_core.kernels.triton.grouped_gemm import grouped_gemm
from moe_core.kernels.triton.tiles import Tile, product_tile, weight_gradient_tile
from moe_core.kernels.triton.weight_gradient import weight_gradient

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# The oldest NVIDIA chips with bfloat16 matrix units and asynchronous copies.
MIN_CAPABILITY = (8, 0)


def swiglu_experts_triton(
    hidden_TD: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    slots_E: Tensor | None = None,
) -> Tensor:
    """Weighted sum of the chosen experts' outputs, (T, D) in the dtype of the input; -1 is no expert.

    Products in the input's dtype with float32 sums; routed weights and the sum over a token's experts in float32;
    deterministic. Gradients for hidden, both weights and routing weights; none of weights in the slots of a pool, where
    expert e's lie in slot slots_E[e] (int64).
    """
    leaves = (hidden_TD, gate_up_E2FD, down_EDF, weights_TK)
    if slots_E is None and torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves):
        out: Tensor = GroupedSwigluTriton.apply(*leaves[:3], expert_ids_TK, weights_TK)
        return out
    packed = (hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK, weights_TK)
    return _forward(*packed, keep=False, slots_E=slots_E)[0]


def supports(hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor) -> bool:
    """CUDA or ROCm tensors of one device and one of DTYPES, contiguous, on a chip with matrix units for them."""
    packed = (hidden_TD, gate_up_E2FD, down_EDF)
    return (
        hidden_TD.is_cuda
        and all(tensor.device == hidden_TD.device for tensor in (*packed, expert_ids_TK))
        and hidden_TD.dtype in DTYPES
        and all(tensor.dtype is hidden_TD.dtype and tensor.stride(-1) == 1 for tensor in packed)
        and gate_up_E2FD.is_contiguous()
        and down_EDF.is_contiguous()
        and expert_ids_TK.dtype in (torch.int64, torch.int32)
        and expert_ids_TK.numel() < 2**31
        and down_EDF.shape[0] <= MAX_EXPERTS
        and (
            torch.version.hip is not None
            or torch.cuda.get_device_capability(hidden_TD.device) >= MIN_CAPABILITY
        )
    )


def _forward(
    hidden_TD: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    *,
    keep: bool,
    slots_E: Tensor | None = None,
) -> tuple[Tensor, Rows, Tile, Tensor | None]:
    """Output, the order of rows, the tile, and gate and up of each row when they are kept."""
    num_experts = (gate_up_E2FD if slots_E is None else slots_E).shape[0]
    tile = product_tile(expert_ids_TK.numel(), num_experts, hidden_TD.dtype, chip_of(hidden_TD.device))
    ids_TK = expert_ids_TK.contiguous()
    rows = align(ids_TK, num_experts, tile.block_m).in_slots(slots_E, gate_up_E2FD.shape[0])
    act_RF, both_R2F = gate_up_swiglu(hidden_TD, gate_up_E2FD, rows, tile, keep=keep)
    out_RD = grouped_gemm(act_RF, down_EDF, rows, tile, gather=False, scatter=True)
    return combine(out_RD, ids_TK, weights_TK.contiguous()), rows, tile, both_R2F


class GroupedSwigluTriton(torch.autograd.Function):
    """Forward keeps gate and up of each row; weights that are frozen cost no backward product."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx,
        hidden_TD: Tensor,
        gate_up_E2FD: Tensor,
        down_EDF: Tensor,
        expert_ids_TK: Tensor,
        weights_TK: Tensor,
    ) -> Tensor:
        out_TD, rows, tile, both_R2F = _forward(
            hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK, weights_TK, keep=True
        )
        assert both_R2F is not None
        ctx.save_for_backward(
            hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK.contiguous(), weights_TK.contiguous(), both_R2F
        )
        ctx.rows, ctx.tile = rows, tile  # type: ignore[attr-defined]
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden_TD, gate_up_E2FD, down_EDF, ids_TK, weights_TK, both_R2F = ctx.saved_tensors
        rows, tile = ctx.rows, ctx.tile
        wants_x, wants_gate_up, wants_down, _, wants_weights = ctx.needs_input_grad
        grad_TD = grad_TD.contiguous()
        d_act_RF = grouped_gemm(grad_TD, down_EDF.transpose(1, 2), rows, tile, gather=True, scatter=False)
        d_both_R2F, scaled_RF, d_weights_TK = activation_backward(
            d_act_RF, both_R2F, weights_TK, rows,
            wants_both=wants_x or wants_gate_up, wants_scaled=wants_down, wants_dots=wants_weights,
        )  # fmt: skip
        d_x = d_gate_up = d_down = None
        if wants_x and d_both_R2F is not None:
            d_rows = grouped_gemm(
                d_both_R2F, gate_up_E2FD.transpose(1, 2), rows, tile, gather=False, scatter=True
            )
            d_x = combine(d_rows, ids_TK, None)
        wide = weight_gradient_tile(hidden_TD.dtype, chip_of(hidden_TD.device))
        if wants_gate_up and d_both_R2F is not None:
            d_gate_up = weight_gradient(d_both_R2F, gather_rows(hidden_TD, rows), rows, wide)
        if scaled_RF is not None:
            d_down = weight_gradient(gather_rows(grad_TD, rows), scaled_RF, rows, wide)
        if d_weights_TK is not None:
            d_weights_TK = d_weights_TK.to(weights_TK.dtype)
        return d_x, d_gate_up, d_down, None, d_weights_TK
