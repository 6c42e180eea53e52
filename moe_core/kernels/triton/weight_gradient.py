"""The gradient of each expert's weight: the sum over its rows of the outer products of two vectors.

Shapes: T tokens, R rows in expert order, E experts, P and Q the two widths.
Each side is gathered by token or lies in expert order. An expert without rows gets zeros. One block owns its tile of the
gradient, so sums have one order and no atomics.

Source: ScatterMoE's `groupXtY` (arXiv 2403.08245).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.kernels.triton.align import Rows
from moe_core.kernels.triton.chip import dot_precision, upcasts
from moe_core.kernels.triton.tiles import Tile


@triton.jit
def weight_gradient_kernel(
    x_ptr, y_ptr, out_ptr, choice_ptr, begin_ptr, num_p, num_q, x_stride, y_stride,
    TOP_K: tl.constexpr, GATHER_X: tl.constexpr, GATHER_Y: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_R: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile (BLOCK_P, BLOCK_Q) of one expert's gradient."""
    tiles_q = tl.cdiv(num_q, BLOCK_Q)
    expert = tl.program_id(1)
    p_P = (tl.program_id(0) // tiles_q) * BLOCK_P + tl.arange(0, BLOCK_P)
    q_Q = (tl.program_id(0) % tiles_q) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    begin = tl.load(begin_ptr + expert)
    end = tl.load(begin_ptr + expert + 1)
    total = tl.zeros([BLOCK_P, BLOCK_Q], tl.float32)
    for first in range(begin, end, BLOCK_R):
        row_R = first + tl.arange(0, BLOCK_R)
        real_R = row_R < end
        if GATHER_X or GATHER_Y:
            token_R = tl.load(choice_ptr + row_R, mask=real_R, other=0) // TOP_K
        if GATHER_X:
            x_row_R = token_R
        else:
            x_row_R = row_R
        if GATHER_Y:
            y_row_R = token_R
        else:
            y_row_R = row_R
        x = tl.load(
            x_ptr + x_row_R.to(tl.int64)[:, None] * x_stride + p_P[None, :],
            mask=real_R[:, None] & (p_P < num_p)[None, :], other=0.0,
        )  # fmt: skip
        y = tl.load(
            y_ptr + y_row_R.to(tl.int64)[:, None] * y_stride + q_Q[None, :],
            mask=real_R[:, None] & (q_Q < num_q)[None, :], other=0.0,
        )  # fmt: skip
        if UPCAST:
            x = x.to(tl.float32)
            y = y.to(tl.float32)
        total = tl.dot(tl.trans(x), y, total, input_precision=PRECISION)
    out_at = out_ptr + (expert.to(tl.int64) * num_p + p_P[:, None]) * num_q + q_Q[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=(p_P < num_p)[:, None] & (q_Q < num_q)[None, :])


def weight_gradient(
    x: Tensor, y: Tensor, rows: Rows, tile: Tile, *, gather_x: bool, gather_y: bool
) -> Tensor:
    """Sum over the rows of each expert of x ⊗ y: (E, P, Q) in the dtype of `x`.

    A gathered side is (T, width), the other (R, width) in expert order. Raises SpecError for what does not fit.
    """
    _check(x, y, rows, gather_x, gather_y)
    num_experts, num_p, num_q = rows.begin_E.shape[0] - 1, x.shape[1], y.shape[1]
    out_EPQ = x.new_empty(num_experts, num_p, num_q)
    grid = (triton.cdiv(num_p, tile.block_m) * triton.cdiv(num_q, tile.block_n), num_experts)
    weight_gradient_kernel[grid](
        x, y, out_EPQ, rows.choice_R, rows.begin_E, num_p, num_q, x.stride(0), y.stride(0),
        TOP_K=rows.top_k, GATHER_X=gather_x, GATHER_Y=gather_y,
        BLOCK_P=tile.block_m, BLOCK_Q=tile.block_n, BLOCK_R=tile.block_k,
        UPCAST=upcasts(x), PRECISION=dot_precision(x), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out_EPQ


def _check(x: Tensor, y: Tensor, rows: Rows, gather_x: bool, gather_y: bool) -> None:
    num_rows = rows.choice_R.shape[0]
    for name, side, gathered in (("x", x, gather_x), ("y", y, gather_y)):
        wanted = num_rows // rows.top_k if gathered else num_rows
        if side.ndim != 2 or side.shape[0] != wanted or side.stride(1) != 1:
            raise SpecError(
                f"{name} is {tuple(side.shape)}; ({wanted}, width) with a last stride of 1 is needed"
            )
    if x.dtype != y.dtype or x.device != y.device:
        raise SpecError(f"x is {x.dtype} on {x.device}, y {y.dtype} on {y.device}: they must agree")
