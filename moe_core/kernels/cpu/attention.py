"""Attention over paged keys and values: of one new token a sequence, read where they lie, and of a prompt's.

Shapes: B sequences, T tokens of one, H query heads, G key-value heads, d width of a key, e of a value, N blocks, P tokens of
a block, M blocks of the longest.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from moe_core.kernels.cpu.native import library
from moe_core.kernels.cpu.plan import HeadsPlan


def attend_rows(
    q_BHd: Tensor,
    k_NPGd: Tensor,
    v_NPGe: Tensor,
    tables_BM: Tensor,
    lengths_B: Tensor,
    *,
    scale: float,
    window: int | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """(B, H, e): each row attends to the first `lengths_B` tokens of its blocks, or the newest `window` of these.

    `sinks_H` (bfloat16) are scores that take part in the softmax and carry no value. `q_BHd` may be a slice along heads;
    tables and lengths are int64. Padding is never read. The caller has asked `supports`.
    """
    native = library()
    assert native is not None
    num_rows, num_heads, _ = q_BHd.shape
    heads = HeadsPlan.of(num_heads, k_NPGd, v_NPGe, scale=scale, window=window, sinks_H=sinks_H)
    out_BHe = torch.empty(num_rows, num_heads, v_NPGe.shape[3], dtype=q_BHd.dtype)
    native.attend(
        ctypes.addressof(heads),
        q_BHd.data_ptr(),
        q_BHd.stride(0),
        tables_BM.data_ptr(),
        lengths_B.data_ptr(),
        out_BHe.data_ptr(),
        num_rows,
        tables_BM.shape[1],
    )
    return out_BHe


def attend_prompt(
    q_THd: Tensor,
    k_NPGd: Tensor,
    v_NPGe: Tensor,
    blocks_M: Tensor,
    length: int,
    *,
    scale: float,
    window: int | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """(T, H, e): the newest T of a sequence's `length` tokens, each attending to itself and those before it.

    `blocks_M` (int64) are the sequence's blocks, where keys and values of all `length` tokens lie already; `window` and
    `sinks_H` as for `attend_rows`. Shares of keys are rounded to bfloat16. The caller has asked `supports`.
    """
    native = library()
    assert native is not None
    num_tokens, num_heads, _ = q_THd.shape
    heads = HeadsPlan.of(num_heads, k_NPGd, v_NPGe, scale=scale, window=window, sinks_H=sinks_H)
    out_THe = torch.empty(num_tokens, num_heads, v_NPGe.shape[3], dtype=q_THd.dtype)
    native.attend_prompt(
        ctypes.addressof(heads),
        q_THd.data_ptr(),
        q_THd.stride(0),
        blocks_M.data_ptr(),
        out_THe.data_ptr(),
        num_tokens,
        length,
    )
    return out_THe


def supports(q_BHd: Tensor, k_NPGd: Tensor) -> bool:
    """bfloat16 on the CPU, heads side by side, no gradient."""
    return (
        library() is not None
        and q_BHd.dtype is torch.bfloat16
        and k_NPGd.dtype is torch.bfloat16
        and q_BHd.device.type == "cpu"
        and q_BHd.stride(2) == 1
        and q_BHd.stride(1) == q_BHd.shape[2]
        and not torch.is_grad_enabled()
    )
