"""Attention over paged keys and values: of one new token a sequence, read where they lie, and of a prompt's.

Shapes: B sequences, T tokens of one, H query heads, G key-value heads, d head_dim, N blocks, P tokens of a block, M blocks
of the longest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_core.kernels.cpu.native import library


def attend_rows(
    q_BHd: Tensor, k_NPGd: Tensor, v_NPGd: Tensor, tables_BM: Tensor, lengths_B: Tensor
) -> Tensor:
    """(B, H, d): each row attends to the first `lengths_B` tokens of its blocks; padding is never read.

    `q_BHd` may be a slice along heads; tables and lengths are int64. The caller has asked `supports`.
    """
    native = library()
    assert native is not None
    num_rows, num_heads, head_dim = q_BHd.shape
    out_BHd = torch.empty(q_BHd.shape, dtype=q_BHd.dtype)
    native.attend(
        q_BHd.data_ptr(),
        q_BHd.stride(0),
        k_NPGd.data_ptr(),
        v_NPGd.data_ptr(),
        tables_BM.data_ptr(),
        lengths_B.data_ptr(),
        out_BHd.data_ptr(),
        num_rows,
        num_heads,
        k_NPGd.shape[2],
        head_dim,
        tables_BM.shape[1],
        k_NPGd.shape[1],
        1.0 / math.sqrt(head_dim),
    )
    return out_BHd


def attend_prompt(q_THd: Tensor, k_NPGd: Tensor, v_NPGd: Tensor, blocks_M: Tensor, length: int) -> Tensor:
    """(T, H, d): the newest T of a sequence's `length` tokens, each attending to itself and those before it.

    `blocks_M` (int64) are the sequence's blocks, where keys and values of all `length` tokens lie already. Shares of keys
    are rounded to bfloat16. The caller has asked `supports`.
    """
    native = library()
    assert native is not None
    num_tokens, num_heads, head_dim = q_THd.shape
    out_THd = torch.empty(q_THd.shape, dtype=q_THd.dtype)
    native.attend_prompt(
        q_THd.data_ptr(),
        q_THd.stride(0),
        k_NPGd.data_ptr(),
        v_NPGd.data_ptr(),
        blocks_M.data_ptr(),
        out_THd.data_ptr(),
        num_tokens,
        length,
        num_heads,
        k_NPGd.shape[2],
        head_dim,
        k_NPGd.shape[1],
        1.0 / math.sqrt(head_dim),
    )
    return out_THd


def supports(q_BHd: Tensor, k_NPGd: Tensor, v_NPGd: Tensor, scale: float) -> bool:
    """bfloat16 on the CPU, heads side by side, values as wide as keys, the usual scale, no gradient."""
    return (
        library() is not None
        and v_NPGd.shape == k_NPGd.shape
        and math.isclose(scale, k_NPGd.shape[3] ** -0.5)
        and q_BHd.dtype is torch.bfloat16
        and k_NPGd.dtype is torch.bfloat16
        and q_BHd.device.type == "cpu"
        and q_BHd.stride(2) == 1
        and q_BHd.stride(1) == q_BHd.shape[2]
        and not torch.is_grad_enabled()
    )
