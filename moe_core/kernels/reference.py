"""The truth that every expert kernel is compared with: a loop over tokens and choices, readable before fast.

Shapes: T tokens, D model width, E experts, K top_k, F expert width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moe_core.kernels.formulas import silu


def swiglu_experts_reference(
    hidden_TD: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    slots_E: Tensor | None = None,
) -> Tensor:
    """Sum over the chosen experts of weight · down(silu(gate(x)) · up(x)): (T, D), one pair at a time.

    A negative id is no expert. With `slots_E` (E,) the weights of expert e are those at slots_E[e].
    """
    if slots_E is not None:
        expert_ids_TK = torch.where(expert_ids_TK < 0, -1, slots_E[expert_ids_TK.clamp(min=0)])
    num_ff = down_EDF.shape[-1]
    rows = []
    for token, ids, weights in zip(hidden_TD, expert_ids_TK.tolist(), weights_TK, strict=True):
        total_D = torch.zeros_like(token, dtype=torch.float32)
        for expert, weight in zip(ids, weights, strict=True):
            if expert < 0:
                continue
            gate_F = gate_up_E2FD[expert, :num_ff] @ token
            up_F = gate_up_E2FD[expert, num_ff:] @ token
            out_D = down_EDF[expert] @ (silu(gate_F) * up_F)
            total_D = total_D + weight * out_D.float()
        rows.append(total_D.to(token.dtype))
    return torch.stack(rows) if rows else torch.zeros_like(hidden_TD)


def gated_experts_reference(
    hidden_TD: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    gating: Callable[[float, float], float],
    gate_up_bias_E2F: Tensor | None = None,
    down_bias_ED: Tensor | None = None,
) -> Tensor:
    """The same with any gating, of two numbers, and with biases: (T, D) in float64, number by number."""
    num_ff = down_EDF.shape[-1]
    rows = []
    for token, ids, weights in zip(
        hidden_TD.double(), expert_ids_TK.tolist(), weights_TK.tolist(), strict=True
    ):
        total_D = torch.zeros_like(token)
        for expert, weight in zip(ids, weights, strict=True):
            if expert < 0:
                continue
            both = (gate_up_E2FD[expert].double() @ token).tolist()
            if gate_up_bias_E2F is not None:
                both = [
                    value + bias for value, bias in zip(both, gate_up_bias_E2F[expert].tolist(), strict=True)
                ]
            inner = [gating(both[f], both[num_ff + f]) for f in range(num_ff)]
            out_D = down_EDF[expert].double() @ torch.tensor(inner, dtype=torch.float64)
            if down_bias_ED is not None:
                out_D = out_D + down_bias_ED[expert].double()
            total_D = total_D + weight * out_D
        rows.append(total_D)
    return torch.stack(rows) if rows else torch.zeros_like(hidden_TD, dtype=torch.float64)
