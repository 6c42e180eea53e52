"""Experts with biases or another gating than silu, in plain torch: one pair of products for each expert with rows.

Shapes: T tokens, D model width, E experts, K top_k, F expert width, R = T·K routed rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.kernels.gating import Gating
from moe_core.kernels.torch_grouped import group_rows, sum_choices


def gated_experts_torch(
    hidden_TD: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    gating: Gating,
    gate_up_bias_E2F: Tensor | None = None,
    down_bias_ED: Tensor | None = None,
    slots_E: Tensor | None = None,
) -> Tensor:
    """Sum over the chosen experts of weight · (down(gating(gate(x), up(x)))): (T, D), gradients by autograd.

    With `slots_E` (E,) int64 the weights and biases of expert e lie in slot slots_E[e] of a pool. Products are in float32
    where the input is bfloat16: on a CPU they are no slower, and the sums need it.
    """
    dtype = hidden_TD.dtype if hidden_TD.dtype == torch.float64 else torch.float32
    rows = group_rows(expert_ids_TK, (gate_up_E2FD if slots_E is None else slots_E).shape[0]).in_slots(
        slots_E
    )
    in_RD, weights_R = hidden_TD.to(dtype)[rows.token_R], weights_TK.to(dtype).reshape(-1)[rows.choice_R]
    # Taken apart once: the gradient of each expert taken by its number would be as large as all of them.
    learns, outs = torch.is_grad_enabled(), []
    gate_ups, downs = (weight.unbind() if learns else weight for weight in (gate_up_E2FD, down_EDF))
    parts = [(expert, in_rD) for (expert, _), in_rD in zip(rows.parts, in_RD.split(rows.counts), strict=True)]
    if not parts and learns:
        # Without any row every tensor still has a gradient, of zeros: one expert is asked with no rows.
        parts = [(0, in_RD)]
    for expert, in_rD in parts:
        both_r2F = in_rD @ gate_ups[expert].to(dtype).t()
        if gate_up_bias_E2F is not None:
            both_r2F = both_r2F + gate_up_bias_E2F[expert].to(dtype)
        out_rD = gating(*both_r2F.chunk(2, dim=-1)) @ downs[expert].to(dtype).t()
        if down_bias_ED is not None:
            out_rD = out_rD + down_bias_ED[expert].to(dtype)
        outs.append(out_rD)
    if not outs:
        return torch.zeros_like(hidden_TD)
    return sum_choices(torch.cat(outs) * weights_R[:, None], rows, weights_TK.shape).to(hidden_TD.dtype)
