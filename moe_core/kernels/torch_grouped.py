"""Experts in plain torch: rows sorted by expert, one GEMM pair for each expert that has rows.

Shapes: T tokens, D model width, E experts, K top_k, F expert width, R = T·K routed rows.
One host sync a call (how many rows each expert has); everything else is queued.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Grouping:
    """Routed rows in expert order: R = T·K."""

    # (R,) token of each row.
    token_R: Tensor
    # (R,) place of each row in the flattened (T, K) choices.
    choice_R: Tensor
    # Rows of each expert; the one thing that is read on the host.
    counts: list[int]


def group_rows(expert_ids_TK: Tensor, num_experts: int) -> Grouping:
    """Sort the routed rows by expert, tokens in their order within each expert."""
    flat_R = expert_ids_TK.reshape(-1)
    choice_R = torch.argsort(flat_R, stable=True)
    counts = torch.bincount(flat_R, minlength=num_experts).tolist()
    return Grouping(choice_R // max(expert_ids_TK.shape[1], 1), choice_R, counts)


def swiglu_experts_torch(
    hidden_TD: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor
) -> Tensor:
    """The torch path for any device and dtype, with gradients for hidden, both weights and routing weights."""
    out: Tensor = GroupedSwiglu.apply(hidden_TD, gate_up_E2FD, down_EDF, expert_ids_TK, weights_TK)
    return out


class GroupedSwiglu(torch.autograd.Function):
    """Forward keeps only gate and up of each row; backward never needs the experts' outputs.

    With dAct = dOut @ down, the routing weight's gradient is <dAct, act>, so outputs are not stored
    (the observation of SonicMoE, arXiv 2512.14080). Weights that are frozen cost no backward GEMM.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_TD: Tensor,
        gate_up_E2FD: Tensor,
        down_EDF: Tensor,
        expert_ids_TK: Tensor,
        weights_TK: Tensor,
    ) -> Tensor:
        rows = group_rows(expert_ids_TK, gate_up_E2FD.shape[0])
        num_rows, num_ff = rows.token_R.shape[0], down_EDF.shape[2]
        weights_R1 = weights_TK.reshape(-1)[rows.choice_R].unsqueeze(1)
        gate_up_R2F = hidden_TD.new_empty(num_rows, 2 * num_ff)
        out_RD = hidden_TD.new_empty(num_rows, hidden_TD.shape[1])
        in_RD = hidden_TD[rows.token_R]
        for expert, part in _slices(rows.counts):
            torch.mm(in_RD[part], gate_up_E2FD[expert].t(), out=gate_up_R2F[part])
            act_rF = _swiglu(gate_up_R2F[part])
            torch.mm(act_rF, down_EDF[expert].t(), out=out_RD[part])
        ctx.save_for_backward(hidden_TD, gate_up_E2FD, down_EDF, weights_R1, gate_up_R2F)
        ctx.rows, ctx.shape_TK = rows, weights_TK.shape  # type: ignore[attr-defined]
        return _combine(out_RD, weights_R1, rows, hidden_TD)

    @staticmethod
    def backward(ctx, grad_TD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def, override]
        hidden_TD, gate_up_E2FD, down_EDF, weights_R1, gate_up_R2F = ctx.saved_tensors
        rows: Grouping = ctx.rows
        wants_x, wants_gate_up, wants_down, _, wants_weights = ctx.needs_input_grad
        num_ff = down_EDF.shape[2]
        grad_RD = grad_TD[rows.token_R]
        d_gate_up = torch.zeros_like(gate_up_E2FD) if wants_gate_up else None
        d_down = torch.zeros_like(down_EDF) if wants_down else None
        d_in_RD = hidden_TD.new_empty(grad_RD.shape) if wants_x else None
        d_weights_R = weights_R1.new_empty(grad_RD.shape[0])
        for expert, part in _slices(rows.counts):
            gate, up = gate_up_R2F[part].split(num_ff, dim=1)
            gate, up = _wide(gate), _wide(up)
            sig = torch.sigmoid(gate)
            silu = gate * sig
            act = silu * up
            d_act = _wide(grad_RD[part] @ down_EDF[expert])
            d_weights_R[part] = (d_act * act).sum(1)
            d_act = d_act * weights_R1[part]
            if d_down is not None:
                scaled = (grad_RD[part] * weights_R1[part]).to(down_EDF.dtype)
                torch.mm(scaled.t(), act.to(down_EDF.dtype), out=d_down[expert])
            if d_in_RD is None and d_gate_up is None:
                continue
            d_gate = d_act * up * (sig + silu * (1 - sig))
            d_both = torch.cat([d_gate, d_act * silu], dim=1).to(hidden_TD.dtype)
            if d_gate_up is not None:
                torch.mm(d_both.t(), hidden_TD[rows.token_R[part]], out=d_gate_up[expert])
            if d_in_RD is not None:
                torch.mm(d_both, gate_up_E2FD[expert], out=d_in_RD[part])
        d_x = None if d_in_RD is None else _sum_choices(d_in_RD, rows, ctx.shape_TK)
        d_weights = None
        if wants_weights:
            d_weights = torch.empty_like(d_weights_R).index_copy_(0, rows.choice_R, d_weights_R).view(ctx.shape_TK)
        return d_x, d_gate_up, d_down, None, d_weights


def _slices(counts: list[int]) -> list[tuple[int, slice]]:
    """(expert, its rows) for each expert that has any."""
    slices, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            slices.append((expert, slice(start, start + count)))
        start += count
    return slices


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _swiglu(gate_up_r2F: Tensor) -> Tensor:
    gate, up = gate_up_r2F.chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def _combine(out_RD: Tensor, weights_R1: Tensor, rows: Grouping, hidden_TD: Tensor) -> Tensor:
    """Weigh in float32 and add the K rows of each token; deterministic, for no row is added to by two threads."""
    num_tokens = hidden_TD.shape[0]
    weighted_RD = _wide(out_RD) * weights_R1
    back_RD = torch.empty_like(weighted_RD).index_copy_(0, rows.choice_R, weighted_RD)
    return back_RD.view(num_tokens, -1, hidden_TD.shape[1]).sum(1).to(hidden_TD.dtype)


def _sum_choices(d_in_RD: Tensor, rows: Grouping, shape_TK: torch.Size) -> Tensor:
    back_RD = torch.empty_like(d_in_RD).index_copy_(0, rows.choice_R, d_in_RD)
    return back_RD.view(*shape_TK, -1).sum(1)
