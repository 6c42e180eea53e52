"""The truth that every expert kernel is compared with: a loop over tokens and choices, readable before fast.

Shapes: T tokens, D model width, E experts, K top_k, F expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def swiglu_experts_reference(
    hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor
) -> Tensor:
    """Sum over the chosen experts of weight · down(silu(gate(x)) · up(x)): (T, D), one pair at a time.

    A negative id is no expert.
    """
    num_ff = down_EDF.shape[-1]
    rows = []
    for token, ids, weights in zip(hidden_TD, expert_ids_TK.tolist(), weights_TK, strict=True):
        total_D = torch.zeros_like(token, dtype=torch.float32)
        for expert, weight in zip(ids, weights, strict=True):
            if expert < 0:
                continue
            gate_F = gate_up_E2FD[expert, :num_ff] @ token
            up_F = gate_up_E2FD[expert, num_ff:] @ token
            out_D = down_EDF[expert] @ (torch.nn.functional.silu(gate_F) * up_F)
            total_D = total_D + weight * out_D.float()
        rows.append(total_D.to(token.dtype))
    return torch.stack(rows) if rows else torch.zeros_like(hidden_TD)
