"""Both halves of a gated feed-forward in one product, and silu(gate) · up before anything is written.

Shapes: T tokens, D model width, E experts, F expert width, R rows in expert order.
The tile of weights takes gate and up rows in turn (g0, u0, g1, u1, …), so that one matrix product of twice the width
yields pairs: neighbouring columns of the accumulator lie in one thread, and the gating moves no data between threads.

Source: Shazeer 2020, "GLU Variants Improve Transformer"; the fusion of SonicMoE (arXiv 2512.14080).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.kernels.triton.align import Rows
from moe_core.kernels.triton.chip import dot_precision, upcasts
from moe_core.kernels.triton.grouped_gemm import blocks, multiply, tile_place
from moe_core.kernels.triton.launch import launch
from moe_core.kernels.triton.tiles import Tile


@triton.jit
def paired(total, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr, SWAP: tl.constexpr):
    """Gate and up, (BLOCK_M, BLOCK_F) each, out of an accumulator whose columns take turns."""
    if SWAP:
        total = tl.trans(total)
    return tl.split(tl.reshape(total, (BLOCK_M, BLOCK_F, 2)))


@triton.jit(do_not_specialize=["num_tiles_m"])
def gate_up_kernel(
    x_ptr, w_ptr, act_ptr, both_ptr, choice_ptr, begin_ptr, tile_expert_ptr, tile_row_ptr,
    num_tiles_m, num_ff, num_inner, x_stride, w_stride_e, w_stride_o,
    TOP_K: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    SWAP: tl.constexpr, EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of rows times BLOCK_N / 2 gate rows and as many up rows."""
    BLOCK_F: tl.constexpr = BLOCK_N // 2
    tile_m, tile_n = tile_place(num_tiles_m, tl.cdiv(num_ff, BLOCK_F), GROUP_M)
    expert = tl.load(tile_expert_ptr + tile_m)
    if expert < 0:
        return
    row_M = tl.load(tile_row_ptr + tile_m) + tl.arange(0, BLOCK_M)
    real_M = row_M < tl.load(begin_ptr + expert + 1)
    token_M = tl.load(choice_ptr + row_M, mask=real_M, other=0) // TOP_K
    turn_N = tl.arange(0, BLOCK_N)
    ff_N = tile_n * BLOCK_F + turn_N // 2
    inner_K = tl.arange(0, BLOCK_K)
    x_at = x_ptr + token_M.to(tl.int64)[:, None] * x_stride + inner_K[None, :]
    w_row_N = (turn_N % 2) * num_ff + ff_N
    w_at = (
        w_ptr
        + expert.to(tl.int64) * w_stride_e
        + w_row_N.to(tl.int64)[:, None] * w_stride_o
        + inner_K[None, :]
    )
    total = tl.zeros([BLOCK_N, BLOCK_M] if SWAP else [BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, num_inner, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_at, mask=real_M[:, None], other=0.0)
            if EVEN_N:
                w = tl.load(w_at)
            else:
                w = tl.load(w_at, mask=(ff_N < num_ff)[:, None], other=0.0)
        else:
            inside_K = inner_K < num_inner - first
            x = tl.load(x_at, mask=real_M[:, None] & inside_K[None, :], other=0.0)
            w = tl.load(w_at, mask=(ff_N < num_ff)[:, None] & inside_K[None, :], other=0.0)
        total = multiply(x, w, total, SWAP, UPCAST, PRECISION)
        x_at += BLOCK_K
        w_at += BLOCK_K
    gate, up = paired(total, BLOCK_M, BLOCK_F, SWAP)
    ff_F = tile_n * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = real_M[:, None] & (ff_F < num_ff)[None, :]
    # Rows of a tile lie one after the other: one 64-bit base and 32-bit places save registers.
    start = tl.load(tile_row_ptr + tile_m).to(tl.int64)
    local_M1 = tl.arange(0, BLOCK_M)[:, None]
    if KEEP:
        both_ptr += start * (2 * num_ff)
        both_at = local_M1 * (2 * num_ff) + ff_F[None, :]
        tl.store(both_ptr + both_at, gate.to(both_ptr.dtype.element_ty), mask=inside)
        tl.store(both_ptr + num_ff + both_at, up.to(both_ptr.dtype.element_ty), mask=inside)
    act = (gate * tl.sigmoid(gate) * up).to(act_ptr.dtype.element_ty)
    tl.store(act_ptr + start * num_ff + (local_M1 * num_ff + ff_F[None, :]), act, mask=inside)


def gate_up_swiglu(
    hidden_TD: Tensor, gate_up_E2FD: Tensor, rows: Rows, tile: Tile, *, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """silu(gate(x)) · up(x) of each row, (R, F) in expert order; with `keep` also gate and up, (R, 2F).

    Raises SpecError for shapes, strides, dtypes or devices that do not fit.
    """
    _check(hidden_TD, gate_up_E2FD, rows)
    num_rows, num_ff = rows.choice_R.shape[0], gate_up_E2FD.shape[1] // 2
    act_RF = torch.empty(num_rows, num_ff, dtype=hidden_TD.dtype, device=hidden_TD.device)
    both_R2F = act_RF.new_empty(num_rows, 2 * num_ff) if keep else None
    if num_rows == 0:
        return act_RF, both_R2F
    width = hidden_TD.shape[1]

    def lay(tile: Tile) -> tuple[int, dict[str, Any]]:
        block_ff = tile.block_n // 2
        even = {"EVEN_N": num_ff % block_ff == 0, "EVEN_K": width % tile.block_k == 0}
        precision = {"UPCAST": upcasts(hidden_TD), "PRECISION": dot_precision(hidden_TD)}
        constants = blocks(tile) | even | precision | {"TOP_K": rows.top_k, "KEEP": keep}
        return rows.max_tiles * triton.cdiv(num_ff, block_ff), constants

    arguments = (
        hidden_TD, gate_up_E2FD, act_RF, both_R2F, rows.choice_R, rows.begin_E, rows.tile_expert_M, rows.tile_row_M,
        rows.max_tiles, num_ff, width, hidden_TD.stride(0), gate_up_E2FD.stride(0), gate_up_E2FD.stride(1),
    )  # fmt: skip
    launch(gate_up_kernel, arguments, tile.for_product(2 * num_ff, width), lay)
    return act_RF, both_R2F


def _check(hidden_TD: Tensor, gate_up_E2FD: Tensor, rows: Rows) -> None:
    num_tokens = rows.choice_R.shape[0] // rows.top_k
    wide = (num_tokens, gate_up_E2FD.shape[-1])
    if gate_up_E2FD.ndim != 3 or gate_up_E2FD.shape[1] % 2 or hidden_TD.shape != wide:
        raise SpecError(
            f"hidden {tuple(hidden_TD.shape)} and gate_up {tuple(gate_up_E2FD.shape)} must be (T, D) and (E, 2F, D), "
            f"T being {num_tokens}"
        )
    if hidden_TD.stride(1) != 1 or gate_up_E2FD.stride(2) != 1:
        raise SpecError("hidden states and gate_up weights need a last stride of 1: make them contiguous")
    if hidden_TD.dtype != gate_up_E2FD.dtype or hidden_TD.device != gate_up_E2FD.device:
        raise SpecError(
            f"hidden is {hidden_TD.dtype} on {hidden_TD.device}, gate_up {gate_up_E2FD.dtype} on {gate_up_E2FD.device}"
        )
