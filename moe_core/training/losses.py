"""The cross-entropy over a frozen head. The losses of routing are in `moe_core.routers.losses`.

Shapes: P positions with a loss, R rows at a time, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows of the head's matrix product at a time: 256 rows of a vocabulary of 49,152 are 50 MB in float32.
HEAD_ROWS = 256


def frozen_head_losses(hidden_PD: Tensor, head_VD: Tensor, target_P: Tensor) -> Tensor:
    """Cross-entropy of each position in float32, (P,); gradients reach the hidden states only."""
    losses: Tensor = _FrozenHead.apply(hidden_PD, head_VD, target_P)
    return losses


class _FrozenHead(torch.autograd.Function):
    """Turns logits into the gradient of the hidden states at once, some rows at a time, and keeps no logits.

    The gradient of a row is its upstream factor times (softmax - one_hot) @ head, and the factor is one number.
    """

    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, head_VD: Tensor, target_P: Tensor) -> Tensor:
        losses_P = torch.empty(hidden_PD.shape[0], dtype=torch.float32, device=hidden_PD.device)
        wants_gradient = ctx.needs_input_grad[0]
        direction_PD = torch.empty_like(hidden_PD) if wants_gradient else None
        for rows in _row_slices(hidden_PD.shape[0]):
            log_probs_RV = torch.log_softmax((hidden_PD[rows] @ head_VD.t()).float(), dim=-1)
            losses_P[rows] = -log_probs_RV.gather(1, target_P[rows, None])[:, 0]
            if direction_PD is not None:
                probs_RV = log_probs_RV.exp_()
                probs_RV.scatter_add_(
                    1, target_P[rows, None], probs_RV.new_full((probs_RV.shape[0], 1), -1.0)
                )
                torch.mm(probs_RV.to(head_VD.dtype), head_VD, out=direction_PD[rows])
        ctx.save_for_backward(direction_PD)
        return losses_P

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (direction_PD,) = ctx.saved_tensors
        return (direction_PD * grad_P[:, None]).to(direction_PD.dtype), None, None


def _row_slices(num_rows: int) -> list[slice]:
    return [slice(start, min(start + HEAD_ROWS, num_rows)) for start in range(0, num_rows, HEAD_ROWS)]
