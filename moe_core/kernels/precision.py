"""What a processor can multiply: bfloat16 where it has instructions for it, float32 where it has not.

Without AVX512-BF16 or AMX a product in bfloat16 is emulated. Measured on an AVX2 processor (Zen 3), one thread, 1,024 by
576 times 576 by 3,072: 8 GFLOP/s in bfloat16, 74 in float32. Widening the weights for one product costs a read and a
write of them, which is little beside a product of many rows.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import scaled_dot_product_attention


@cache
def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for products of bfloat16."""
    if platform.machine() not in ("x86_64", "AMD64"):
        # Arm's BF16 extension is not told apart by torch; its kernels choose for themselves.
        return True
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


@cache
def has_tiles() -> bool:
    """Whether this machine's CPU multiplies bfloat16 in tiles (AMX), which torch uses for products of many rows."""
    return platform.machine() in ("x86_64", "AMD64") and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def training_dtype(
    wanted: Literal["auto", "float32", "bfloat16"], stored: Literal["float32", "bfloat16"]
) -> Literal["float32", "bfloat16"]:
    """`wanted`; for "auto" float32 where weights are stored so, else the quicker of the two on this machine.

    So nothing is rounded by being read: bfloat16 comes back out of float32 as it was.
    """
    if wanted != "auto":
        return wanted
    quick = torch.cuda.is_available() or multiplies_bfloat16()
    return "bfloat16" if stored == "bfloat16" and quick else "float32"


def widens(x: Tensor) -> bool:
    """Whether a product of `x` is better computed in float32; never while gradients are recorded."""
    return (
        x.dtype is torch.bfloat16
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not multiplies_bfloat16()
    )


def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """torch's scaled_dot_product_attention, with the arithmetic that the processor has."""
    if not widens(q):
        return scaled_dot_product_attention(q, k, v, **options)
    mask = options.pop("attn_mask", None)
    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    out = scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, **options)
    return out.to(q.dtype)


def product(x_RK: Tensor, weight_OK: Tensor) -> Tensor:
    """x · weightᵀ in the dtype of `x`, with the arithmetic that the processor has; any leading shape of `x`."""
    if not widens(x_RK):
        return torch_linear(x_RK, weight_OK)
    return torch_linear(x_RK.float(), weight_OK.float()).to(x_RK.dtype)
