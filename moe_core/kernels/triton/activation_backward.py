"""The gradient of silu(gate) · up, fused behind the product that brings the gradient of the activation.

Shapes: T tokens, D model width, E experts, F expert width, R rows in expert order, N column tiles.
One product, dOut · down, gives four things: the gradients of gate and up, the weighted activation that the gradient of
`down` needs, and the gradient of the routing weight, <dAct, act>: the experts' outputs need not be kept.

Source: SonicMoE (arXiv 2512.14080), section 3, for the routing weight's gradient.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.kernels.triton.align import Rows
from moe_core.kernels.triton.chip import dot_precision, upcasts
from moe_core.kernels.triton.grouped_gemm import multiply, tile_place
from moe_core.kernels.triton.tiles import Tile


@triton.jit(do_not_specialize=["num_tiles_m"])
def activation_backward_kernel(
    grad_ptr, w_ptr, both_ptr, weights_ptr, d_both_ptr, scaled_ptr, dots_ptr,
    choice_ptr, begin_ptr, tile_expert_ptr, tile_row_ptr,
    num_tiles_m, num_ff, width, grad_stride, w_stride_e, w_stride_d,
    TOP_K: tl.constexpr, BOTH: tl.constexpr, SCALED: tl.constexpr, DOTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of rows, BLOCK_N columns of the activation."""
    num_tiles_n = tl.cdiv(num_ff, BLOCK_N)
    tile_m, tile_n = tile_place(num_tiles_m, num_tiles_n, GROUP_M)
    expert = tl.load(tile_expert_ptr + tile_m)
    if expert < 0:
        return
    row_M = tl.load(tile_row_ptr + tile_m) + tl.arange(0, BLOCK_M)
    real_M = row_M < tl.load(begin_ptr + expert + 1)
    choice_M = tl.load(choice_ptr + row_M, mask=real_M, other=0)
    ff_N = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = ff_N < num_ff
    inner_K = tl.arange(0, BLOCK_K)
    grad_at = grad_ptr + (choice_M // TOP_K).to(tl.int64)[:, None] * grad_stride + inner_K[None, :]
    # (BLOCK_K, BLOCK_N) of `down`: its columns are next to each other.
    w_at = (
        w_ptr + expert.to(tl.int64) * w_stride_e + inner_K.to(tl.int64)[:, None] * w_stride_d + ff_N[None, :]
    )
    d_act = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, width, BLOCK_K):
        inside_K = inner_K < width - first
        grad = tl.load(grad_at, mask=real_M[:, None] & inside_K[None, :], other=0.0)
        w = tl.load(w_at, mask=inside_K[:, None] & inside_N[None, :], other=0.0)
        d_act = multiply(grad, tl.trans(w), d_act, False, UPCAST, PRECISION)
        grad_at += BLOCK_K
        w_at += BLOCK_K * w_stride_d
    # Rows of a tile lie one after the other: one 64-bit base and 32-bit places, for registers are what is short here.
    start = tl.load(tile_row_ptr + tile_m).to(tl.int64)
    inside = real_M[:, None] & inside_N[None, :]
    local_M1 = tl.arange(0, BLOCK_M)[:, None]
    pair_at = local_M1 * (2 * num_ff) + ff_N[None, :]
    both_ptr += start * (2 * num_ff)
    gate = tl.load(both_ptr + pair_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both_ptr + num_ff + pair_at, mask=inside, other=0.0).to(tl.float32)
    open_ = tl.sigmoid(gate)
    silu = gate * open_
    if DOTS:
        dots_at = dots_ptr + choice_M.to(tl.int64) * num_tiles_n + tile_n
        tl.store(dots_at, tl.sum(d_act * silu * up, axis=1), mask=real_M)
    weight = tl.load(weights_ptr + choice_M, mask=real_M, other=0.0).to(tl.float32)[:, None]
    if SCALED:
        scaled = (silu * up * weight).to(scaled_ptr.dtype.element_ty)
        tl.store(scaled_ptr + start * num_ff + (local_M1 * num_ff + ff_N[None, :]), scaled, mask=inside)
    if BOTH:
        d_act *= weight
        d_both_ptr += start * (2 * num_ff)
        d_up = (d_act * silu).to(d_both_ptr.dtype.element_ty)
        tl.store(d_both_ptr + num_ff + pair_at, d_up, mask=inside)
        d_gate = (d_act * up * (open_ + silu * (1.0 - open_))).to(d_both_ptr.dtype.element_ty)
        tl.store(d_both_ptr + pair_at, d_gate, mask=inside)


def backward_tile(tile: Tile) -> Tile:
    """The forward's row tiles with room in registers for gate, up and three results."""
    warps = 8 if tile.block_m >= 64 else 4
    return replace(tile, block_n=64, block_k=min(tile.block_k, 64), num_warps=warps, num_stages=3, swap=False)


def activation_backward(
    grad_TD: Tensor,
    down_EDF: Tensor,
    both_R2F: Tensor,
    weights_TK: Tensor,
    rows: Rows,
    tile: Tile,
    *,
    wants_both: bool,
    wants_scaled: bool,
    wants_dots: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What is wanted of: gradients of gate and up (R, 2F), weighted activations (R, F), routing gradients (T, K) float32.

    `both_R2F` is what the forward pass kept. Routing gradients of choices without an expert are zero.
    Raises SpecError for shapes, strides, dtypes or devices that do not fit.
    """
    _check(grad_TD, down_EDF, both_R2F, weights_TK, rows)
    num_rows, (_, width, num_ff) = rows.choice_R.shape[0], down_EDF.shape
    tile = backward_tile(tile)
    num_tiles_n = triton.cdiv(num_ff, tile.block_n)
    d_both_R2F = torch.empty_like(both_R2F) if wants_both else None
    scaled_RF = both_R2F.new_empty(num_rows, num_ff) if wants_scaled else None
    dots_RN = None
    if wants_dots:
        dots_RN = torch.zeros(num_rows, num_tiles_n, dtype=torch.float32, device=grad_TD.device)
    if num_rows:
        activation_backward_kernel[(rows.max_tiles * num_tiles_n,)](
            grad_TD, down_EDF, both_R2F, weights_TK, d_both_R2F, scaled_RF, dots_RN,
            rows.choice_R, rows.begin_E, rows.tile_expert_M, rows.tile_row_M,
            rows.max_tiles, num_ff, width, grad_TD.stride(0), down_EDF.stride(0), down_EDF.stride(1),
            TOP_K=rows.top_k, BOTH=wants_both, SCALED=wants_scaled, DOTS=wants_dots,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=tile.group_m,
            UPCAST=upcasts(grad_TD), PRECISION=dot_precision(grad_TD),
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return d_both_R2F, scaled_RF, None if dots_RN is None else dots_RN.sum(1).view(weights_TK.shape)


def _check(grad_TD: Tensor, down_EDF: Tensor, both_R2F: Tensor, weights_TK: Tensor, rows: Rows) -> None:
    num_rows, (_, width, num_ff) = rows.choice_R.shape[0], down_EDF.shape
    if grad_TD.shape != (num_rows // rows.top_k, width) or both_R2F.shape != (num_rows, 2 * num_ff):
        raise SpecError(
            f"gradient {tuple(grad_TD.shape)} and kept {tuple(both_R2F.shape)} do not fit {num_rows} rows of down "
            f"{tuple(down_EDF.shape)}"
        )
    fits = (
        grad_TD.stride(1) == 1
        and down_EDF.stride(2) == 1
        and both_R2F.is_contiguous()
        and weights_TK.is_contiguous()
    )
    if not fits or len({grad_TD.dtype, down_EDF.dtype, both_R2F.dtype}) != 1:
        raise SpecError("gradient, down and what forward kept need one dtype and a last stride of 1")
