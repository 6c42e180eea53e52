"""What a training step does beside its products, compiled: each in one pass over rows, computed in float32.

Every function takes contiguous tensors on the CPU, float32 or bfloat16, and `supports` tells whether it may be called.
Shapes: R rows, T tokens, D model width, F expert width, V vocabulary, K top_k, H heads, d values of a head.
Source: the fusions of Hsu et al. 2024, "Liger Kernel", arXiv 2410.10989 (norm, positions, SwiGLU, cross-entropy).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_core.kernels.cpu.native import Library, library

_DTYPES = (torch.float32, torch.bfloat16)


def supports(*tensors: Tensor) -> bool:
    """Whether the compiled passes take these tensors: one dtype, float32 or bfloat16, contiguous, on the CPU."""
    dtype = tensors[0].dtype
    return (
        dtype in _DTYPES
        and all(t.dtype is dtype and t.device.type == "cpu" and t.is_contiguous() for t in tensors)
        and library() is not None
    )


def head_errors_(logits_RV: Tensor, target_R: Tensor, factor: float | None) -> Tensor:
    """Float32 cross-entropy of each row (R,); logits become factor · (softmax - one_hot), or stay without a factor.

    Raises IndexError for a target that is no column.
    """
    rows, columns = logits_RV.shape
    if rows and not 0 <= int(target_R.min()) <= int(target_R.max()) < columns:
        raise IndexError(f"a target is outside the vocabulary of {columns}")
    target_R, losses_R = target_R.to(torch.int64).contiguous(), _floats(logits_RV, rows)
    places = (logits_RV.data_ptr(), _is_float(logits_RV), target_R.data_ptr(), losses_R.data_ptr())
    _native().head_errors(*places, factor or 0.0, int(factor is not None), rows, columns)
    return losses_R


def swiglu(both_R2F: Tensor, act_RF: Tensor) -> Tensor:
    """silu(gate) · up of rows that hold both, written to `act_RF` and returned."""
    _native().swiglu(both_R2F.data_ptr(), _is_float(both_R2F), act_RF.data_ptr(), *act_RF.shape)
    return act_RF


def swiglu_back(
    both_R2F: Tensor,
    d_act_RF: Tensor,
    weights_R: Tensor,
    d_weights_R: Tensor,
    d_both_R2F: Tensor | None,
    act_RF: Tensor | None,
) -> None:
    """Gradients of rows whose output counts `weights_R` times, given d_act of the output as it is, without weights.

    Writes <d_act, act> to `d_weights_R` (both float32), the gradient of gate and up to `d_both_R2F`, and weight · act to
    `act_RF`; the last two only where they are given.
    """
    outs = [0 if out is None else out.data_ptr() for out in (d_both_R2F, act_RF)]
    ins = (both_R2F.data_ptr(), d_act_RF.data_ptr(), _is_float(both_R2F), weights_R.data_ptr())
    _native().swiglu_back(*ins, *outs, d_weights_R.data_ptr(), *d_act_RF.shape)


def combine(rows_RD: Tensor, place_TK: Tensor, weights_R: Tensor | None) -> Tensor:
    """The rows of each token added up in float32, weighed where `weights_R` (float32) is given: (T, D).

    `place_TK` (int64) says which row each choice has; below 0 it has none.
    """
    num_tokens, top_k = place_TK.shape
    out_TD = rows_RD.new_empty(num_tokens, rows_RD.shape[1])
    ins = (place_TK.data_ptr(), 0 if weights_R is None else weights_R.data_ptr())
    sizes = (num_tokens, top_k, rows_RD.shape[1])
    _native().combine(rows_RD.data_ptr(), _is_float(rows_RD), *ins, out_TD.data_ptr(), *sizes)
    return out_TD


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of the last axis, differentiable in both; for tensors that `supports` takes."""
    normed: Tensor = _RmsNorm.apply(x, weight_D, eps)
    return normed


def turn(x_THd: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
    """Pairs (i, i + d/2) of each head turned by their token's angle, differentiable in x: also a part of wider rows."""
    turned: Tensor = _Turn.apply(x_THd, cos_T1h, sin_T1h, 1.0)
    return turned


class _RmsNorm(torch.autograd.Function):
    """Keeps the input and one factor a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        rows, width = x.shape[:-1].numel(), x.shape[-1]
        out, factor_R = torch.empty_like(x), _floats(x, rows)
        ins = (x.data_ptr(), weight_D.data_ptr(), _is_float(x), eps)
        _native().norm(*ins, out.data_ptr(), factor_R.data_ptr(), rows, width)
        ctx.save_for_backward(x, weight_D, factor_R)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight_D, factor_R = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_norm_twice(x, weight_D, ctx.eps, grad, ctx.needs_input_grad[:2]), None
        grad, d_x = grad.contiguous(), torch.empty_like(x)
        d_weight_D = _floats(x, weight_D.shape[0]) if ctx.needs_input_grad[1] else None
        _native().norm_back(
            x.data_ptr(), weight_D.data_ptr(), grad.data_ptr(), _is_float(x), factor_R.data_ptr(), d_x.data_ptr(),
            0 if d_weight_D is None else d_weight_D.data_ptr(), factor_R.shape[0], weight_D.shape[0],
        )  # fmt: skip
        return d_x, None if d_weight_D is None else d_weight_D.to(weight_D.dtype), None


def _norm_twice(
    x: Tensor, weight_D: Tensor, eps: float, grad: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients by torch, which can differentiate them again (`create_graph`)."""
    asked = [part for part, is_wanted in zip((x, weight_D), wanted, strict=True) if is_wanted]
    out = torch.nn.functional.rms_norm(x, weight_D.shape, weight_D, eps)
    found = iter(torch.autograd.grad(out, asked, grad, create_graph=True))
    d_x, d_weight_D = (next(found) if is_wanted else None for is_wanted in wanted)
    return d_x, d_weight_D


class _Turn(torch.autograd.Function):
    """Backward turns the other way and keeps nothing but the tables."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x_THd: Tensor, cos_T1h: Tensor, sin_T1h: Tensor, sign: float
    ) -> Tensor:
        ctx.save_for_backward(cos_T1h, sin_T1h)
        ctx.sign = sign
        return _turned(x_THd, cos_T1h, sin_T1h, sign)

    @staticmethod
    def backward(ctx: Any, grad_THd: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return _Turn.apply(grad_THd, *ctx.saved_tensors, -ctx.sign), None, None, None


def _turned(x_THd: Tensor, cos_T1h: Tensor, sin_T1h: Tensor, sign: float) -> Tensor:
    if x_THd.stride(-1) != 1:
        x_THd = x_THd.contiguous()
    out_THd = x_THd.new_empty(x_THd.shape)
    num_tokens, num_heads, width = x_THd.shape
    ins = (x_THd.data_ptr(), _is_float(x_THd), *x_THd.stride()[:2], cos_T1h.data_ptr(), sin_T1h.data_ptr())
    outs = (out_THd.data_ptr(), num_heads * width)
    _native().turn_heads(*ins, sign, *outs, num_tokens, num_heads, width // 2)
    return out_THd


def _floats(like: Tensor, num: int) -> Tensor:
    """Room for so many float32, whatever torch's default dtype is."""
    return like.new_empty(num, dtype=torch.float32)


def _native() -> Library:
    native = library()
    assert native is not None
    return native


def _is_float(x: Tensor) -> int:
    return int(x.dtype is torch.float32)
