"""The weighted sum of each token's rows: in float32, always in the order of the choices, so always the same bits.

Shapes: T tokens, K top_k, D model width. Nothing is added atomically. A choice without an expert is never read.

Source: vLLM's `moe_fused_mul_sum`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from moe_core.errors import SpecError


@triton.jit
def combine_kernel(
    rows_ptr, ids_ptr, weights_ptr, out_ptr, width,
    TOP_K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_D columns of one token."""
    token = tl.program_id(0).to(tl.int64)
    column_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total_D = tl.zeros([BLOCK_D], tl.float32)
    for place in tl.static_range(TOP_K):
        choice = token * TOP_K + place
        chosen = tl.load(ids_ptr + choice) >= 0
        # One comparison, not a scalar's and a block's joined: the interpreter of Triton 3.9 makes no mask of those.
        known_D = column_D < tl.where(chosen, width, 0)
        row_D = tl.load(rows_ptr + choice * width + column_D, mask=known_D, other=0.0).to(tl.float32)
        if WEIGHTED:
            row_D *= tl.load(weights_ptr + choice, mask=chosen, other=0.0).to(tl.float32)
        total_D += row_D
    tl.store(out_ptr + token * width + column_D, total_D.to(out_ptr.dtype.element_ty), mask=column_D < width)


def combine(rows_TKD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """Sum over k of weights · rows, (T, D) in the dtype of the rows; `weights_TK` None is one everywhere.

    `rows_TKD` is contiguous (T · K, D), by choice. Raises SpecError for shapes and strides that do not fit.
    """
    num_tokens, top_k = expert_ids_TK.shape
    width = rows_TKD.shape[-1]
    tensors = [rows_TKD, expert_ids_TK, *([] if weights_TK is None else [weights_TK])]
    if rows_TKD.shape != (num_tokens * top_k, width) or not all(x.is_contiguous() for x in tensors):
        raise SpecError(
            f"rows {tuple(rows_TKD.shape)} must be contiguous ({num_tokens * top_k}, D) for ids "
            f"{tuple(expert_ids_TK.shape)}, and ids and weights contiguous too"
        )
    if weights_TK is not None and weights_TK.shape != expert_ids_TK.shape:
        raise SpecError(f"weights {tuple(weights_TK.shape)} must be {tuple(expert_ids_TK.shape)}")
    out_TD = rows_TKD.new_empty(num_tokens, width)
    if num_tokens == 0:
        return out_TD
    block = min(1024, triton.next_power_of_2(width))
    combine_kernel[(num_tokens, triton.cdiv(width, block))](
        rows_TKD, expert_ids_TK, weights_TK, out_TD, width,
        TOP_K=top_k, WEIGHTED=weights_TK is not None, BLOCK_D=block, num_warps=4,
    )  # fmt: skip
    return out_TD
