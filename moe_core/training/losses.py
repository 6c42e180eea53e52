"""The cross-entropy over the output map, some rows at a time. The losses of routing are in `moe_core.routers.losses`.

Shapes: P positions with a loss, R rows at a time, D model width, V vocabulary.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_core.kernels.cpu.training import head_errors_, supports

# Bytes of logits at a time. The fewer rows a product has, the more it waits for the head, which each product reads whole: at
# a vocabulary of 49,152 products in tiles (AMX) of 1,024 rows are twice as fast as those of 256.
HEAD_BYTES = 100 * 2**20
_kept = threading.local()


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
        direction_PD = torch.empty_like(hidden_PD) if ctx.needs_input_grad[0] else None
        logits_RV = _room_for_logits(hidden_PD, head_VD)
        for rows in _row_slices(hidden_PD.shape[0], logits_RV):
            factor = None if direction_PD is None else 1.0
            losses_P[rows], errors_RV = _losses_and_errors(
                hidden_PD[rows], head_VD, target_P[rows], factor, logits_RV
            )
            if direction_PD is not None:
                torch.mm(errors_RV, head_VD, out=direction_PD[rows])
        ctx.save_for_backward(direction_PD)
        return losses_P

    @staticmethod
    @once_differentiable
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
        d_head_VD = torch.empty_like(head_VD) if wants_head else None
        factor = 1.0 / count if wants_hidden or wants_head else None
        logits_RV = _room_for_logits(hidden_PD, head_VD)
        for rows in _row_slices(count, logits_RV):
            losses_R, errors_RV = _losses_and_errors(
                hidden_PD[rows], head_VD, target_P[rows], factor, logits_RV
            )
            total += losses_R.sum()
            if d_hidden_PD is not None:
                torch.mm(errors_RV, head_VD, out=d_hidden_PD[rows])
            if d_head_VD is not None:
                _add_product_(d_head_VD, errors_RV.t(), hidden_PD[rows], is_first=rows.start == 0)
        ctx.save_for_backward(d_hidden_PD, d_head_VD)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_hidden_PD, d_head_VD = ctx.saved_tensors
        # A loss that is differentiated as it is, which is the rule, has a factor of 1: no pass over the head's gradient.
        is_one = grad.device.type == "cpu" and float(grad) == 1.0
        scaled = (d if d is None or is_one else d.mul_(grad) for d in (d_hidden_PD, d_head_VD))
        return (*scaled, None)


def _add_product_(total_VD: Tensor, left_VR: Tensor, right_RD: Tensor, *, is_first: bool) -> None:
    """total += left @ right; the first product is written over what lies there."""
    if is_first:
        torch.mm(left_VR, right_RD, out=total_VD)
        return
    total_VD.addmm_(left_VR, right_RD)


def _room_for_logits(hidden_PD: Tensor, head_VD: Tensor) -> Tensor:
    """Memory for the logits of one stretch of rows, which all of them use: fresh pages cost as much as exp.

    On a processor each thread keeps its own for its next batch: at most HEAD_BYTES or 64 rows, and no more rows than its
    largest batch had. It goes when the thread ends, when it says `release_room`, or when more or another dtype is needed.
    """
    most = rows_at_once(head_VD.shape[0] * head_VD.element_size())
    shape = (min(most, hidden_PD.shape[0]), head_VD.shape[0])
    if hidden_PD.device.type != "cpu":
        return hidden_PD.new_empty(shape)
    num = shape[0] * shape[1]
    return _kept_room(num, hidden_PD.dtype)[:num].view(shape)


def _kept_room(num: int, dtype: torch.dtype) -> Tensor:
    kept: Tensor | None = getattr(_kept, "room", None)
    if kept is not None and kept.dtype is dtype and kept.numel() >= num:
        return kept
    # The old goes before the new is made.
    kept = None
    release_room()
    # Memory made for inference could not be written to while gradients are recorded.
    with torch.inference_mode(False):
        _kept.room = torch.empty(num, dtype=dtype, device="cpu")
    room: Tensor = _kept.room
    return room


def release_room() -> None:
    """Give back the room that this thread keeps for logits, if it keeps any."""
    _kept.room = None


def _losses_and_errors(
    hidden_RD: Tensor, head_VD: Tensor, target_R: Tensor, factor: float | None, room_RV: Tensor
) -> tuple[Tensor, Tensor]:
    """Float32 losses (R,), and factor · (softmax - one_hot) in the dtype of the head, (R, V).

    Without a factor the second is unspecified.
    """
    logits_RV = torch.mm(hidden_RD, head_VD.t(), out=room_RV[: hidden_RD.shape[0]])
    if supports(logits_RV):
        return head_errors_(logits_RV, target_R, factor), logits_RV
    log_probs_RV = torch.log_softmax(logits_RV.float(), dim=-1)
    losses_R = -log_probs_RV.gather(1, target_R[:, None])[:, 0]
    if factor is None:
        return losses_R, logits_RV
    errors_RV = log_probs_RV.exp_()
    errors_RV.scatter_add_(1, target_R[:, None], errors_RV.new_full((errors_RV.shape[0], 1), -1.0))
    return losses_R, errors_RV.mul_(factor).to(head_VD.dtype)


def rows_at_once(bytes_of_row: int) -> int:
    """How many rows of logits are held at once: whole times 64, for torch compiles products in 16 bits by their size."""
    return max(1, HEAD_BYTES // bytes_of_row // 64) * 64


def _row_slices(num_rows: int, room_RV: Tensor) -> list[slice]:
    size = max(1, room_RV.shape[0])
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
