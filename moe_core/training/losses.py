"""The cross-entropy over the output map, some rows at a time. The losses of routing are in `moe_core.routers.losses`.

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


def mean_head_loss(hidden_PD: Tensor, head_VD: Tensor, target_P: Tensor) -> Tensor:
    """Mean cross-entropy in float32, a scalar; gradients reach the hidden states and the head. At least one position.

    Source: the fused linear cross-entropy of Hsu et al. 2024, "Liger Kernel", arXiv 2410.10989: a mean's gradient is
    known up to one factor before backward begins, so that logits need not be kept or computed again.
    """
    loss: Tensor = _MeanOverHead.apply(hidden_PD, head_VD, target_P)
    return loss


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
            losses_P[rows], log_probs_RV = _row_losses(hidden_PD[rows], head_VD, target_P[rows])
            if direction_PD is not None:
                errors_RV = _errors(log_probs_RV, target_P[rows]).to(head_VD.dtype)
                torch.mm(errors_RV, head_VD, out=direction_PD[rows])
        ctx.save_for_backward(direction_PD)
        return losses_P

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (direction_PD,) = ctx.saved_tensors
        return (direction_PD * grad_P[:, None]).to(direction_PD.dtype), None, None


class _MeanOverHead(torch.autograd.Function):
    """Both gradients of the mean are made beside the logits; backward multiplies them with one number."""

    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, head_VD: Tensor, target_P: Tensor) -> Tensor:
        count = hidden_PD.shape[0]
        total = torch.zeros((), dtype=torch.float32, device=hidden_PD.device)
        wants_hidden, wants_head, _ = ctx.needs_input_grad
        d_hidden_PD = torch.empty_like(hidden_PD) if wants_hidden else None
        d_head_VD = torch.zeros_like(head_VD) if wants_head else None
        for rows in _row_slices(count):
            losses_R, log_probs_RV = _row_losses(hidden_PD[rows], head_VD, target_P[rows])
            total += losses_R.sum()
            if not (wants_hidden or wants_head):
                continue
            errors_RV = _errors(log_probs_RV, target_P[rows]).div_(count).to(head_VD.dtype)
            if d_hidden_PD is not None:
                torch.mm(errors_RV, head_VD, out=d_hidden_PD[rows])
            if d_head_VD is not None:
                d_head_VD.addmm_(errors_RV.t(), hidden_PD[rows])
        ctx.save_for_backward(d_hidden_PD, d_head_VD)
        return total / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_hidden_PD, d_head_VD = ctx.saved_tensors
        scaled = (None if d is None else d.mul_(grad) for d in (d_hidden_PD, d_head_VD))
        return (*scaled, None)


def _row_losses(hidden_RD: Tensor, head_VD: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 losses (R,) and the logarithms of all probabilities (R, V)."""
    log_probs_RV = torch.log_softmax((hidden_RD @ head_VD.t()).float(), dim=-1)
    return -log_probs_RV.gather(1, target_R[:, None])[:, 0], log_probs_RV


def _errors(log_probs_RV: Tensor, target_R: Tensor) -> Tensor:
    """softmax - one_hot, (R, V), in the place of the logarithms."""
    probs_RV = log_probs_RV.exp_()
    return probs_RV.scatter_add_(1, target_R[:, None], probs_RV.new_full((probs_RV.shape[0], 1), -1.0))


def _row_slices(num_rows: int) -> list[slice]:
    return [slice(start, min(start + HEAD_ROWS, num_rows)) for start in range(0, num_rows, HEAD_ROWS)]
