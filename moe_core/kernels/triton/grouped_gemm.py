"""Rows times the weight of their expert, rows gathered on the way in and scattered on the way out.

Shapes: T tokens, R rows in expert order (R = T·K choices), E experts, I inner width, O outer width.
One block computes a tile of rows, all of one expert, times a tile of columns. Rows come either as they lie or from the
token of their choice; results go to their row or to their choice. No copy of the permuted rows is ever made.

Source: ScatterMoE (arXiv 2403.08245) for the gather and scatter; vLLM's SWAP_AB for few rows.
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
from moe_core.kernels.triton.launch import launch
from moe_core.kernels.triton.tiles import Tile


@triton.jit
def tile_place(num_tiles_m, num_tiles_n, GROUP_M: tl.constexpr):
    """Which tile a block computes: GROUP_M row tiles share a column tile while it is in the cache."""
    place = tl.program_id(0)
    group_size = GROUP_M * num_tiles_n
    first_m = (place // group_size) * GROUP_M
    rows_in_group = tl.minimum(num_tiles_m - first_m, GROUP_M)
    within = place % group_size
    return first_m + within % rows_in_group, within // rows_in_group


@triton.jit
def tile_reads(
    choice_M, row_M, real_M, tile_n, num_columns,
    TOP_K: tl.constexpr, PAIRED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The rows of x that a tile reads, the columns that it writes, and the rows of a weight that are theirs.

    PAIRED: gate and up rows of the weight in turn, so that a column has both; x is one row a token. Else x is one a choice.
    """
    turn_N = tl.arange(0, BLOCK_N)
    if PAIRED:
        from_M = choice_M // TOP_K
        column_N = tile_n * (BLOCK_N // 2) + turn_N // 2
        outer_N = (turn_N % 2) * num_columns + column_N
    else:
        from_M = tl.where(real_M, row_M, 0)
        column_N = tile_n * BLOCK_N + turn_N
        outer_N = column_N
    return from_M, column_N, outer_N


@triton.jit
def multiply(x, w, total, SWAP: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """total + x · wᵀ, or its transpose with the weight on the left."""
    if UPCAST:
        x = x.to(tl.float32)
        w = w.to(tl.float32)
    if SWAP:
        total = tl.dot(w, tl.trans(x), total, input_precision=PRECISION)
    else:
        total = tl.dot(x, tl.trans(w), total, input_precision=PRECISION)
    return total


# The number of tiles changes from call to call, and must not give a kernel of its own.
@triton.jit(do_not_specialize=["num_tiles_m"])
def grouped_gemm_kernel(
    x_ptr, w_ptr, out_ptr, choice_ptr, begin_ptr, tile_expert_ptr, tile_row_ptr,
    num_tiles_m, num_outer, num_inner, x_stride, w_stride_e, w_stride_o, w_stride_i, out_stride,
    TOP_K: tl.constexpr, GATHER: tl.constexpr, SCATTER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    SWAP: tl.constexpr, EVEN_N: tl.constexpr, EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of rows times one tile of a weight's columns."""
    tile_m, tile_n = tile_place(num_tiles_m, tl.cdiv(num_outer, BLOCK_N), GROUP_M)
    expert = tl.load(tile_expert_ptr + tile_m)
    if expert < 0:
        return
    row_M = tl.load(tile_row_ptr + tile_m) + tl.arange(0, BLOCK_M)
    real_M = row_M < tl.load(begin_ptr + expert + 1)
    if GATHER or SCATTER:
        choice_M = tl.load(choice_ptr + row_M, mask=real_M, other=0)
    if GATHER:
        from_M = choice_M // TOP_K
    else:
        from_M = tl.where(real_M, row_M, 0)
    outer_N = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inner_K = tl.arange(0, BLOCK_K)
    x_at = x_ptr + from_M.to(tl.int64)[:, None] * x_stride + inner_K[None, :]
    w_at = (
        w_ptr + expert.to(tl.int64) * w_stride_e
        + outer_N.to(tl.int64)[:, None] * w_stride_o + inner_K.to(tl.int64)[None, :] * w_stride_i
    )  # fmt: skip
    total = tl.zeros([BLOCK_N, BLOCK_M] if SWAP else [BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, num_inner, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_at, mask=real_M[:, None], other=0.0)
            if EVEN_N:
                w = tl.load(w_at)
            else:
                w = tl.load(w_at, mask=(outer_N < num_outer)[:, None], other=0.0)
        else:
            inside_K = inner_K < num_inner - first
            x = tl.load(x_at, mask=real_M[:, None] & inside_K[None, :], other=0.0)
            w = tl.load(w_at, mask=(outer_N < num_outer)[:, None] & inside_K[None, :], other=0.0)
        total = multiply(x, w, total, SWAP, UPCAST, PRECISION)
        x_at += BLOCK_K
        w_at += BLOCK_K * w_stride_i
    if SWAP:
        total = tl.trans(total)
    if SCATTER:
        to_M = choice_M
    else:
        to_M = row_M
    out_at = out_ptr + to_M.to(tl.int64)[:, None] * out_stride + outer_N[None, :]
    tl.store(
        out_at, total.to(out_ptr.dtype.element_ty), mask=real_M[:, None] & (outer_N < num_outer)[None, :]
    )


def blocks(tile: Tile) -> dict[str, Any]:
    """A tile as the constants of this kernel and of the one with the gating."""
    sizes = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    return sizes | {"GROUP_M": tile.group_m, "SWAP": tile.swap}


def grouped_gemm(x: Tensor, w_EOI: Tensor, rows: Rows, tile: Tile, *, gather: bool, scatter: bool) -> Tensor:
    """x · w[expert]ᵀ of each row: (R, O) in the dtype of `x`.

    `x` is (T, I) with `gather`, else (R, I) in expert order; `w_EOI` may have any strides. With `scatter` results lie by
    choice, else in expert order; places of choices without an expert stay unwritten.
    Raises SpecError for shapes, strides, dtypes or devices that do not fit.
    """
    _check(x, w_EOI, rows, gather)
    num_rows = rows.choice_R.shape[0]
    num_outer, num_inner = w_EOI.shape[1:]
    out = torch.empty(num_rows, num_outer, dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out

    def lay(tile: Tile) -> tuple[int, dict[str, Any]]:
        even = {"EVEN_N": num_outer % tile.block_n == 0, "EVEN_K": num_inner % tile.block_k == 0}
        way = {"TOP_K": rows.top_k, "GATHER": gather, "SCATTER": scatter}
        constants = blocks(tile) | even | way | {"UPCAST": upcasts(x), "PRECISION": dot_precision(x)}
        return rows.max_tiles * triton.cdiv(num_outer, tile.block_n), constants

    arguments = (
        x, w_EOI, out, rows.choice_R, rows.begin_E, rows.tile_expert_M, rows.tile_row_M,
        rows.max_tiles, num_outer, num_inner, x.stride(0), *w_EOI.stride(), out.stride(0),
    )  # fmt: skip
    launch(grouped_gemm_kernel, arguments, tile.for_product(num_outer, num_inner), lay)
    return out


def _check(x: Tensor, w_EOI: Tensor, rows: Rows, gather: bool) -> None:
    num_rows = rows.choice_R.shape[0]
    wanted = num_rows // rows.top_k if gather else num_rows
    if x.ndim != 2 or w_EOI.ndim != 3 or x.shape != (wanted, w_EOI.shape[2]) or x.stride(1) != 1:
        raise SpecError(
            f"rows {tuple(x.shape)} of strides {x.stride()} do not fit weights {tuple(w_EOI.shape)}: "
            f"({wanted}, {w_EOI.shape[-1]}) with a last stride of 1 is needed"
        )
    if x.dtype != w_EOI.dtype or x.device != w_EOI.device or x.device != rows.choice_R.device:
        raise SpecError(
            f"rows are {x.dtype} on {x.device}, weights {w_EOI.dtype} on {w_EOI.device}, "
            f"their order on {rows.choice_R.device}: move them together"
        )
