"""The gradient of weight · silu(gate) · up, row by row, from the gradient of the activation.

Shapes: T tokens, K top_k, F expert width, R rows in expert order.
One pass over each row gives the gradients of gate and up, the weighted activation that the gradient of `down` needs, and
the gradient of the routing weight, <dAct, act>: the experts' outputs need not be kept. It stands behind the product that
brings dAct instead of in it: there it left that product too few registers for a wide tile, which cost more than the
pass over memory does here (docs/explanation/lab-log-gpus.md).

Source: SonicMoE (arXiv 2512.14080), section 3, for the routing weight's gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.kernels.triton.align import Rows


@triton.jit
def activation_backward_kernel(
    d_act_ptr, both_ptr, weights_ptr, d_both_ptr, scaled_ptr, dots_ptr, choice_ptr, begin_ptr, num_ff, num_experts,
    BOTH: tl.constexpr, SCALED: tl.constexpr, DOTS: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """One row; behind the last one there is nothing to do."""
    row = tl.program_id(0)
    if row >= tl.load(begin_ptr + num_experts):
        return
    choice = tl.load(choice_ptr + row)
    weight = tl.load(weights_ptr + choice).to(tl.float32)
    d_act_ptr += row.to(tl.int64) * num_ff
    both_ptr += row.to(tl.int64) * (2 * num_ff)
    dot_F = tl.zeros([BLOCK_F], tl.float32)
    for first in range(0, num_ff, BLOCK_F):
        ff_F = first + tl.arange(0, BLOCK_F)
        inside_F = ff_F < num_ff
        d_act = tl.load(d_act_ptr + ff_F, mask=inside_F, other=0.0).to(tl.float32)
        gate = tl.load(both_ptr + ff_F, mask=inside_F, other=0.0).to(tl.float32)
        up = tl.load(both_ptr + num_ff + ff_F, mask=inside_F, other=0.0).to(tl.float32)
        open_ = tl.sigmoid(gate)
        silu = gate * open_
        dot_F += d_act * silu * up
        if SCALED:
            scaled = (silu * up * weight).to(scaled_ptr.dtype.element_ty)
            tl.store(scaled_ptr + row.to(tl.int64) * num_ff + ff_F, scaled, mask=inside_F)
        if BOTH:
            d_act *= weight
            at = d_both_ptr + row.to(tl.int64) * (2 * num_ff) + ff_F
            d_gate = d_act * up * (open_ + silu * (1.0 - open_))
            tl.store(at, d_gate.to(d_both_ptr.dtype.element_ty), mask=inside_F)
            tl.store(at + num_ff, (d_act * silu).to(d_both_ptr.dtype.element_ty), mask=inside_F)
    if DOTS:
        tl.store(dots_ptr + choice, tl.sum(dot_F, axis=0))


def activation_backward(
    d_act_RF: Tensor,
    both_R2F: Tensor,
    weights_TK: Tensor,
    rows: Rows,
    *,
    wants_both: bool,
    wants_scaled: bool,
    wants_dots: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What is wanted of: gradients of gate and up (R, 2F), weighted activations (R, F), routing gradients (T, K) float32.

    `d_act_RF` is the gradient of each row's activation without its routing weight, `both_R2F` what the forward pass
    kept, both in expert order. Routing gradients of choices without an expert are zero.
    Raises SpecError for shapes, strides, dtypes or devices that do not fit.
    """
    _check(d_act_RF, both_R2F, weights_TK, rows)
    num_rows, num_ff = d_act_RF.shape
    d_both_R2F = torch.empty_like(both_R2F) if wants_both else None
    scaled_RF = torch.empty_like(d_act_RF) if wants_scaled else None
    dots_TK = None
    if wants_dots:
        dots_TK = torch.zeros(weights_TK.shape, dtype=torch.float32, device=weights_TK.device)
    if num_rows:
        activation_backward_kernel[(num_rows,)](
            d_act_RF, both_R2F, weights_TK, d_both_R2F, scaled_RF, dots_TK, rows.choice_R, rows.begin_E,
            num_ff, rows.begin_E.shape[0] - 1,
            BOTH=wants_both, SCALED=wants_scaled, DOTS=wants_dots,
            BLOCK_F=min(1024, triton.next_power_of_2(num_ff)), num_warps=4,
        )  # fmt: skip
    return d_both_R2F, scaled_RF, dots_TK


def _check(d_act_RF: Tensor, both_R2F: Tensor, weights_TK: Tensor, rows: Rows) -> None:
    num_rows, num_ff = d_act_RF.shape
    if both_R2F.shape != (num_rows, 2 * num_ff) or rows.choice_R.shape != (num_rows,):
        raise SpecError(
            f"gradient {tuple(d_act_RF.shape)} and kept {tuple(both_R2F.shape)} do not fit {rows.choice_R.shape[0]} rows"
        )
    if weights_TK.numel() != num_rows:
        raise SpecError(f"weights {tuple(weights_TK.shape)} must be one for each of {num_rows} choices")
    if not all(tensor.is_contiguous() for tensor in (d_act_RF, both_R2F, weights_TK)):
        raise SpecError("gradient, kept gate and up, and weights must be contiguous")
    if d_act_RF.dtype != both_R2F.dtype or d_act_RF.device != both_R2F.device:
        raise SpecError(
            f"the gradient is {d_act_RF.dtype} on {d_act_RF.device}, what was kept {both_R2F.dtype} on {both_R2F.device}"
        )
