"""The losses of routing and the cross-entropy over a frozen head; padding is masked out of each.

Shapes: T tokens, E experts, K top_k, P positions with a loss, D model width, V vocabulary, N domains.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_core.routers import Routing

# Rows of the head's matrix product at a time: 256 rows of a vocabulary of 49,152 are 50 MB in float32.
HEAD_ROWS = 256


def label_loss(routing: Routing, labels_NE: Tensor, domain_T: Tensor, real_T: Tensor) -> Tensor:
    """-log of the probability that the router gives to the experts of the token's domain; mean over such tokens."""
    counted_T = real_T & (domain_T >= 0)
    if not counted_T.any():
        return routing.probs_TE.new_zeros(())
    logits_TE = torch.log_softmax(routing.logits_TE[counted_T], dim=-1)
    mine_TE = labels_NE.bool()[domain_T[counted_T]]
    return -torch.logsumexp(logits_TE.masked_fill(~mine_TE, float("-inf")), dim=-1).mean()


def balance_loss(routing: Routing, real_T: Tensor, share_E: Tensor | None = None) -> Tensor:
    """E · sum over experts of (share of assignments · mean probability): 1 when even, E when one takes all.

    `share_E` (float32, sums to 1) stands in for the batch's own share: that of a larger batch, or of the past.
    Source: Fedus et al. 2021, "Switch Transformers", eq. 4, with the k assignments of a token counted each.
    """
    num_experts = routing.probs_TE.shape[1]
    if not real_T.any():
        return routing.probs_TE.new_zeros(())
    if share_E is None:
        ids = routing.expert_ids_TK[real_T].flatten()
        share_E = torch.bincount(ids, minlength=num_experts).to(routing.probs_TE.dtype) / ids.numel()
    return num_experts * (share_E * routing.probs_TE[real_T].mean(0)).sum()


def z_loss(routing: Routing, real_T: Tensor) -> Tensor:
    """Mean squared logsumexp of the logits: keeps them small. Source: Zoph et al. 2022, "ST-MoE"."""
    if not real_T.any():
        return routing.logits_TE.new_zeros(())
    return torch.logsumexp(routing.logits_TE[real_T], dim=-1).square().mean()


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
        losses_P = torch.empty(hidden_PD.shape[0], dtype=torch.float32)
        wants_gradient = ctx.needs_input_grad[0]
        direction_PD = torch.empty_like(hidden_PD) if wants_gradient else None
        for rows in _row_slices(hidden_PD.shape[0]):
            log_probs_RV = torch.log_softmax((hidden_PD[rows] @ head_VD.t()).float(), dim=-1)
            losses_P[rows] = -log_probs_RV.gather(1, target_P[rows, None])[:, 0]
            if direction_PD is not None:
                probs_RV = log_probs_RV.exp_()
                probs_RV[torch.arange(probs_RV.shape[0]), target_P[rows]] -= 1.0
                torch.mm(probs_RV.to(head_VD.dtype), head_VD, out=direction_PD[rows])
        ctx.save_for_backward(direction_PD)
        return losses_P

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (direction_PD,) = ctx.saved_tensors
        return (direction_PD * grad_P[:, None]).to(direction_PD.dtype), None, None


def _row_slices(num_rows: int) -> list[slice]:
    return [slice(start, min(start + HEAD_ROWS, num_rows)) for start in range(0, num_rows, HEAD_ROWS)]
