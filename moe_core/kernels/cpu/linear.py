"""A linear map for few tokens: bfloat16 weights as they lie, sums in float32.

Shapes: T tokens, O rows out, K columns in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear

from moe_core.kernels.cpu.library import library

# Above this torch's blocked product is faster: it reads the weights once for all tokens, in cache-sized tiles.
MAX_TOKENS = 16


def linear(x_TK: Tensor, weight_OK: Tensor) -> Tensor:
    """x · weightᵀ in the dtype of the input, by the compiled kernel where it applies, else by torch."""
    native = library()
    if native is None or not supports(x_TK, weight_OK):
        return torch_linear(x_TK, weight_OK)
    num_tokens, num_columns = x_TK.shape
    out_TO = x_TK.new_empty(num_tokens, weight_OK.shape[0])
    native.linear(
        weight_OK.data_ptr(),
        x_TK.data_ptr(),
        out_TO.data_ptr(),
        0,
        num_tokens,
        weight_OK.shape[0],
        num_columns,
    )
    return out_TO


def supports(x_TK: Tensor, weight_OK: Tensor) -> bool:
    """Whether the kernel takes these very tensors: few rows, bfloat16 on the CPU, contiguous, no gradient."""
    return (
        x_TK.dtype is torch.bfloat16
        and x_TK.ndim == 2
        and 0 < x_TK.shape[0] <= MAX_TOKENS
        and weight_OK.dtype is torch.bfloat16
        and x_TK.shape[1] == weight_OK.shape[1]
        and x_TK.is_contiguous()
        and weight_OK.is_contiguous()
        and x_TK.device.type == "cpu"
        and not torch.is_grad_enabled()
    )
