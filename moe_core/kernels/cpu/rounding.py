"""Weights into codes by the compiled kernel, some hundred times as fast as by torch's operations.

Shapes: R rows, W row length, B bytes of a row's codes, G groups of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.kernels.cpu.native import library
from moe_core.spec.quantisation import ExpertQuantSpec


def round_into(
    weight_RW: Tensor, spec: ExpertQuantSpec, codes_RB: Tensor, scales_RG: Tensor, zeros_RG: Tensor | None
) -> bool:
    """Fill contiguous codes (uint8), scales (float16) and zero points (uint8) of a weight in float32 or bfloat16.

    False, and nothing is written, where the kernel is not there or the weight is not on the CPU in one of these dtypes.
    """
    native = library()
    if (
        native is None
        or weight_RW.device.type != "cpu"
        or weight_RW.dtype not in (torch.float32, torch.bfloat16)
    ):
        return False
    weight_RW = weight_RW.detach().contiguous()
    native.quantise(
        weight_RW.data_ptr(),
        int(weight_RW.dtype is torch.bfloat16),
        *weight_RW.shape,
        spec.bits,
        spec.group_size,
        int(spec.symmetric),
        spec.super_group_size or 0,
        codes_RB.data_ptr(),
        scales_RG.data_ptr(),
        None if zeros_RG is None else zeros_RG.data_ptr(),
    )
    return True
