"""A copy of each row's token in expert order, for the one product that cannot gather while it multiplies.

Shapes: T tokens, D model width, R rows in expert order.
The gradient of a weight runs along rows. Were they looked up inside its loop, each load would wait for the one of its
index, and Triton's pipeline would be one stage deep; a copy costs a read and a write.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.kernels.triton.align import Rows


@triton.jit
def gather_kernel(
    x_ptr,
    out_ptr,
    choice_ptr,
    begin_ptr,
    num_experts,
    width,
    x_stride,
    TOP_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One row; behind the last one there is nothing to do."""
    row = tl.program_id(0)
    if row >= tl.load(begin_ptr + num_experts):
        return
    token = (tl.load(choice_ptr + row) // TOP_K).to(tl.int64)
    for first in range(0, width, BLOCK_D):
        column_D = first + tl.arange(0, BLOCK_D)
        inside_D = column_D < width
        value_D = tl.load(x_ptr + token * x_stride + column_D, mask=inside_D)
        tl.store(out_ptr + row.to(tl.int64) * width + column_D, value_D, mask=inside_D)


def gather_rows(x_TD: Tensor, rows: Rows) -> Tensor:
    """(R, D): the token of each row; rows that no expert has stay unwritten. Raises SpecError for what does not fit."""
    num_rows, width = rows.choice_R.shape[0], x_TD.shape[-1]
    if x_TD.ndim != 2 or x_TD.shape[0] != num_rows // rows.top_k or x_TD.stride(1) != 1:
        raise SpecError(
            f"tokens {tuple(x_TD.shape)} must be ({num_rows // rows.top_k}, D) with a last stride of 1"
        )
    out_RD = torch.empty(num_rows, width, dtype=x_TD.dtype, device=x_TD.device)
    if num_rows:
        gather_kernel[(num_rows,)](
            x_TD, out_RD, rows.choice_R, rows.begin_E, rows.begin_E.shape[0] - 1, width, x_TD.stride(0),
            TOP_K=rows.top_k, BLOCK_D=min(2048, triton.next_power_of_2(width)), num_warps=4,
        )  # fmt: skip
    return out_RD
