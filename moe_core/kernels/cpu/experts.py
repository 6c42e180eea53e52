"""The expert kernel for few tokens: each active expert's weights are read once, whatever the number of its tokens.

Shapes: T tokens, D model width, E experts, K top_k, F expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.errors import SpecError
from moe_core.kernels import dispatch
from moe_core.kernels.cpu.native import library

NAME = "cpu_decode"
# Rows of one expert are taken four at a time; with more of them torch's blocked product is faster.
MAX_ROWS_AN_EXPERT = 12


def swiglu_experts_cpu(
    hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor
) -> Tensor:
    """Weighted sum of the chosen experts' outputs: (T, D) bfloat16, summed in float32; -1 is no expert.

    Raises SpecError for an expert number that the layer has not.
    """
    native = library()
    assert native is not None
    num_experts, width, num_ff = down_EDF.shape
    ids_TK, weights_TK = expert_ids_TK.contiguous(), weights_TK.float().contiguous()
    out_TD = torch.empty_like(hidden_TD)
    failed = native.experts(
        gate_up_E2FD.data_ptr(),
        down_EDF.data_ptr(),
        hidden_TD.data_ptr(),
        ids_TK.data_ptr(),
        weights_TK.data_ptr(),
        out_TD.data_ptr(),
        *ids_TK.shape,
        num_experts,
        width,
        num_ff,
    )
    if failed:
        raise SpecError(f"an expert id is outside the layer's {num_experts} experts")
    return out_TD


def supports(hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor) -> bool:
    """Few rows, bfloat16 on the CPU, contiguous, no gradient."""
    num_rows = expert_ids_TK.numel()
    return (
        hidden_TD.dtype is torch.bfloat16
        and 0 < num_rows <= MAX_ROWS_AN_EXPERT * gate_up_E2FD.shape[0]
        and hidden_TD.shape[0] <= MAX_ROWS_AN_EXPERT * 4
        and expert_ids_TK.dtype is torch.int64
        and gate_up_E2FD.dtype is torch.bfloat16
        and down_EDF.dtype is torch.bfloat16
        and hidden_TD.is_contiguous()
        and gate_up_E2FD.is_contiguous()
        and down_EDF.is_contiguous()
        and hidden_TD.device.type == "cpu"
        and not torch.is_grad_enabled()
    )


def register() -> bool:
    """Put the kernel first in the dispatcher where it was compiled; whether it was."""
    if library() is None:
        return False
    dispatch.register(dispatch.RegisteredKernel(NAME, swiglu_experts_cpu, supports))
    return True
