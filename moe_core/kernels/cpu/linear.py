"""A linear map for few tokens: bfloat16 weights as they lie, sums in float32.

Shapes: T tokens, O rows out, K columns in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.kernels.cpu.native import Library, library
from moe_core.kernels.precision import product, widens

# Above this torch's blocked product is faster: it reads the weights once for all tokens, in cache-sized tiles.
MAX_TOKENS = 16


def linear(x_TK: Tensor, weight_OK: Tensor) -> Tensor:
    """x · weightᵀ in the dtype of the input, by the compiled kernel where it applies, else by torch."""
    native = library()
    if native is None or not supports(x_TK, weight_OK):
        return product(x_TK, weight_OK)
    out_TO = x_TK.new_empty(x_TK.shape[0], weight_OK.shape[0])
    _run(native, x_TK, weight_OK, out_TO)
    return out_TO


def linear_to_float(x_TK: Tensor, weight_OK: Tensor) -> Tensor:
    """x · weightᵀ in float32, for logits: rounded to bfloat16, neighbours at the top would often tie."""
    native = library()
    if native is None or not supports(x_TK[:MAX_TOKENS], weight_OK):
        if widens(x_TK):
            return x_TK.float() @ weight_OK.float().t()
        return product(x_TK, weight_OK).float()
    out_TO = torch.empty(x_TK.shape[0], weight_OK.shape[0])
    for x_tK, out_tO in zip(x_TK.split(MAX_TOKENS), out_TO.split(MAX_TOKENS), strict=True):
        _run(native, x_tK, weight_OK, out_tO)
    return out_TO


def _run(native: Library, x_TK: Tensor, weight_OK: Tensor, out_TO: Tensor) -> None:
    num_rows, num_columns = weight_OK.shape
    is_float = int(out_TO.dtype is torch.float32)
    native.linear(
        weight_OK.data_ptr(),
        x_TK.data_ptr(),
        out_TO.data_ptr(),
        is_float,
        x_TK.shape[0],
        num_rows,
        num_columns,
    )


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
