"""Experts whose maps and activation are given as functions: for weights in any layout, ours or another library's.

Shapes: T tokens, D model width, K top_k, R routed rows, r rows of one expert.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moe_core.kernels.torch_grouped import group_rows, sum_choices

# (expert, its rows (r, D)) → what it makes of them (r, D), unweighted.
OneExpert = Callable[[int, Tensor], Tensor]


def mapped_experts_torch(
    hidden_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, num_experts: int, one_expert: OneExpert
) -> Tensor:
    """Sum over the chosen experts of weight · one_expert(expert, x): (T, D) in the dtype of the input.

    Every expert with rows is asked once, with all of them; a negative id is no expert. Weighted rows are added up in float32
    (float64 for such inputs). Gradients by autograd: zeros where no place is filled, for which all experts are asked with no
    rows.
    """
    dtype = hidden_TD.dtype if hidden_TD.dtype == torch.float64 else torch.float32
    rows = group_rows(expert_ids_TK, num_experts)
    in_RD, weights_R = hidden_TD[rows.token_R], weights_TK.to(dtype).reshape(-1)[rows.choice_R]
    if not rows.parts:
        if not torch.is_grad_enabled():
            return torch.zeros_like(hidden_TD)
        nothing_0D = torch.cat([one_expert(expert, in_RD).to(dtype) for expert in range(num_experts)])
        return sum_choices(nothing_0D * weights_R[:, None], rows, weights_TK.shape).to(hidden_TD.dtype)
    # Split and added up once: a slice, and a sum into the whole, of each expert would be a copy of the whole for each.
    parts = zip(rows.parts, in_RD.split(rows.counts), strict=True)
    out_RD = torch.cat([one_expert(expert, in_rD).to(dtype) for (expert, _), in_rD in parts])
    return sum_choices(out_RD * weights_R[:, None], rows, weights_TK.shape).to(hidden_TD.dtype)
