"""The gradient of each expert's weight: the sum over its rows of the outer products of two vectors.

Shapes: R rows in expert order, E experts, P and Q the two widths.
An expert without rows gets zeros. One block owns its tile of the gradient, so sums have one order and no atomics.

Source: ScatterMoE's `groupXtY` (arXiv 2403.08245).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.kernels.triton.align import Rows
from moe_core.kernels.triton.chip import dot_precision, upcasts
from moe_core.kernels.triton.launch import launch
from moe_core.kernels.triton.tiles import Tile


@triton.jit
def weight_gradient_kernel(
    x_ptr, y_ptr, out_ptr, begin_ptr, num_p, num_q,
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
    row_R = tl.arange(0, BLOCK_R)
    first_R1 = (begin + row_R).to(tl.int64)[:, None]
    x_at = x_ptr + first_R1 * num_p + p_P[None, :]
    y_at = y_ptr + first_R1 * num_q + q_Q[None, :]
    total = tl.zeros([BLOCK_P, BLOCK_Q], tl.float32)
    for left in range(end - begin, 0, -BLOCK_R):
        x = tl.load(x_at, mask=(row_R < left)[:, None] & (p_P < num_p)[None, :], other=0.0)
        y = tl.load(y_at, mask=(row_R < left)[:, None] & (q_Q < num_q)[None, :], other=0.0)
        if UPCAST:
            x = x.to(tl.float32)
            y = y.to(tl.float32)
        total = tl.dot(tl.trans(x), y, total, input_precision=PRECISION)
        x_at += BLOCK_R * num_p
        y_at += BLOCK_R * num_q
    out_at = out_ptr + (expert.to(tl.int64) * num_p + p_P[:, None]) * num_q + q_Q[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=(p_P < num_p)[:, None] & (q_Q < num_q)[None, :])


def blocks(tile: Tile) -> dict[str, Any]:
    """A tile as the constants of the kernel: rows and columns of the gradient, tokens a step."""
    return {"BLOCK_P": tile.block_m, "BLOCK_Q": tile.block_n, "BLOCK_R": tile.block_k}


def weight_gradient(x_RP: Tensor, y_RQ: Tensor, rows: Rows, tile: Tile) -> Tensor:
    """Sum over the rows of each expert of x ⊗ y: (E, P, Q) in the dtype of `x_RP`; both sides contiguous, in expert order.

    Raises SpecError for what does not fit.
    """
    num_rows = rows.choice_R.shape[0]
    for name, side in (("x", x_RP), ("y", y_RQ)):
        if side.ndim != 2 or side.shape[0] != num_rows or not side.is_contiguous():
            raise SpecError(f"{name} is {tuple(side.shape)}; contiguous ({num_rows}, width) is needed")
    if x_RP.dtype != y_RQ.dtype or x_RP.device != y_RQ.device:
        raise SpecError(
            f"x is {x_RP.dtype} on {x_RP.device}, y {y_RQ.dtype} on {y_RQ.device}: they must agree"
        )
    num_experts, num_p, num_q = rows.begin_E.shape[0] - 1, x_RP.shape[1], y_RQ.shape[1]
    out_EPQ = x_RP.new_empty(num_experts, num_p, num_q)

    def lay(tile: Tile) -> tuple[tuple[int, int], dict[str, Any]]:
        grid = (triton.cdiv(num_p, tile.block_m) * triton.cdiv(num_q, tile.block_n), num_experts)
        return grid, blocks(tile) | {"UPCAST": upcasts(x_RP), "PRECISION": dot_precision(x_RP)}

    launch(weight_gradient_kernel, (x_RP, y_RQ, out_EPQ, rows.begin_E, num_p, num_q), tile, lay)
    return out_EPQ
